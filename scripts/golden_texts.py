"""What transformers makes of difficult texts and of conversations with the tokenizers of real models.

Usage: golden_texts.py TOKENIZERS OUTPUT, where TOKENIZERS is a folder of tokenizer directories (scripts/real-files). Needs
transformers and jinja2, but not torch. Format: tests/golden/README.md.
"""

import copy
import hashlib
import json
import struct
import sys
from pathlib import Path

import transformers
from transformers import AutoTokenizer

VERSION = "5.23.0"

# A text, or a piece and how many times it is repeated.
TEXTS = [
    "",
    " ",
    "       x",
    "x        ",
    "a  b   c    d     e",
    [" ", 700],
    ["\n", 300],
    ["\t \n", 150],
    "\r\nline\r\n\r\n  indented\r\rmac\n\r\n",
    "\u00a0no\u00a0break\u2003em\u2009thin\u3000full\u200bzero\u2028line\u2029paragraph\u0085next",
    "0 1 12 123 1234 12345 1234567890123 3.14159 -1e-9 1,234,567.89 0xDEADBEEF",
    "٠١٢٣٤٥٦٧٨٩ ०१२३४ ⅷ ½ ²³ ① 𝟘𝟙𝟚 １２３４",
    "def f(x):\n\tif x == 1:\n\t\treturn {'a': [x**2, -x], \"b\": f'{x!r:>{10}}'}\n\n\n    # end\n",
    "fn main() -> Result<(), Box<dyn Error>> { let x = &mut v[..n]; x?.iter().map(|y| y << 2); Ok(()) }",
    "<p class=\"x\">a &amp; b</p><!-- c --><script>if(a<b&&c>d){}</script></p>",
    "https://example.org/~a/b_c.html?q=%C3%A9&r=1#frag user@example.org C:\\dir\\file.txt /usr/lib/../bin",
    "It's I'm we'll they've DON'T YOU'RE 'tis rock'n'roll it’s l'été O'Neill's 's 'S 'LL",
    "!?!?!? ... --- ___ *** ((([[[{{{ }}}]]])))  ;;;;;; ~~~~ `````` \\\\\\\\",
    "Ünïcödé naïve façade Straße İstanbul ıI ß ẞ ǅ ŉ",
    "e\u0301 o\u0308\u0304 n\u0303 A\u030a \u0301alone q\u0307\u0323 q\u0323\u0307 \u1100\u1161\u11a8 각 \u212b \ufb01 ﷺ",
    "Z̷̢̛͖̥a̶͔͝l̴̰͋g̵̙̏o̸̲͌ t̴͇̐e̷̱͝x̶̰̌t̸̘̀",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ЁЖ їжак ѣ",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΐ ἀρχή ᾧ",
    "שָׁלוֹם עוֹלָם abc אבג 123 דה",
    "السَّلامُ عَلَيْكُم، ١٢٣ abc مرحبا\u200f \u202eltr\u202c لا إله",
    "हिन्दी में लिखा क्षत्रिय ज्ञ र्क ड़ \u0921\u093c বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം ਪੰਜਾਬੀ සිංහල",
    "ภาษาไทยไม่มีการเว้นวรรค น้ำ ກຳ ភាសាខ្មែរ မြန်မာ བོད་ཡིག",
    "敏捷的棕色狐狸跳过了懒狗。「引用」，全角！　漢字かな交じり文カタカナﾊﾝｶｸ",
    "한국어 문장입니다. ㄱㄴㄷ 가각간갇",
    "ქართული հայերեն አማርኛ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ ⵜⴰⵎⴰⵣⵉⵖⵜ ߒߞߏ",
    "𐍈𐌰 𓀀𓁐 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠮷𡈽 𒀀 𐎠 🂡 🀄",
    "👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷 ❤️ ☺︎ 1️⃣ 🧑🏿‍🚀 \u200d👩 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "nul\u0000nul bell\u0007 esc\u001b[31m del\u007f c1\u0080\u009f vt\u000b ff\u000c soft\u00ad",
    "\ufeffmark at the front, \ufeff within\ufeff",
    "\ufffd\ufffe\uffff \ue000 \U000f0000 \U0010ffff \u0378 Ã© â€™ Ã\u0083Â©",
    "<0x0A><0xFF> ▁▁a▁b Ġthe ĊĊ Â ##ing </w> ▁",
    "<|begin_of_text|><|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<|reserved_special_token_5|> <|end_of_text|>",
    "x<|im_start|>system\n <|im_end|> <|endoftext|>y<think>\n</think><tool_call><|vision_start|><|fim_prefix|>",
    "<bos> a <eos><start_of_turn>user\n<end_of_turn>\n<pad><unk><mask><unused7>[multimodal]<start_of_image><image_soft_token>",
    "<｜begin▁of▁sentence｜> a<｜User｜>b<｜Assistant｜><｜end▁of▁sentence｜><｜tool▁calls▁begin｜><｜▁pad▁｜>",
    "<s> [INST] <<SYS>> </s> [/INST] <|user|> <|IM_END|> <| im_end |> <|im_end <|im_end|im_end|> <start_of_turn <end_of_turn>>",
    ["Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", 9],
    ["a", 900],
    ["ab1", 400],
    ["漢", 300],
    ["\u0301", 120],
    ["🙂\u200d", 100],
    ["=-", 200],
    ["<|im_end|>", 50],
]

USER = {"role": "user", "content": "  What is 2 < 3 & \"4\" > 'ü'?\n"}
SYSTEM = {"role": "system", "content": " Be brief.\n\n漢字 "}
ASSISTANT = {"role": "assistant", "content": "True."}
ARGUMENTS = {"q": "a \"b\" <é'> 🙂", "n": [1, 2.5, None, True], "m": {}}


def call(arguments: object, content: str | None) -> dict:
    function = {"name": "look_up", "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "id": "call_1", "function": function}]}


UNTIDY = "\r\na\t<|im_end|><|eot_id|><end_of_turn><｜User｜> {{ x }} {% y %} \\ e\u0301 👩‍👩‍👧 مرحبا\u0000\ufeff \u00a0"
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "look_up", "content": "[1, \"é\"]"}
THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2\nis 4"}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "Why?"}, ASSISTANT, USER],
    [{"role": "user", "content": ""}],
    [{"role": "system", "content": ""}, USER, {"role": "assistant", "content": ""}, USER],
    [USER, call(json.dumps(ARGUMENTS), None), RESULT],
    [SYSTEM, USER, call(ARGUMENTS, "Looking."), RESULT, RESULT, ASSISTANT, USER],
    [USER, THOUGHT, USER],
    [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue. "}, USER, THOUGHT],
    [{"role": "user", "content": UNTIDY}],
    [USER, USER],
    [SYSTEM, {"role": "system", "content": "Twice."}, USER, {"role": "critic", "content": "No."}],
    [{"role": "user", "content": [{"type": "text", "text": " One part. "}, {"type": "text", "text": "Another"}]}, ASSISTANT],
]


def checksum(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()[:16]


def of_ids(ids: list[int]) -> list:
    return [len(ids), checksum(struct.pack(f"<{len(ids)}I", *ids))]


def of_text(tokenizer, text: str) -> list:
    bare, surrounded = (tokenizer.encode(text, add_special_tokens=special) for special in (False, True))
    read = tokenizer.decode(bare, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [*of_ids(bare), *of_ids(surrounded), checksum(read.encode())]


def of_conversation(tokenizer, messages: list) -> list | None:
    def applied(tokenize: bool):
        # A copy: transformers writes into messages.
        copied = copy.deepcopy(messages)
        return tokenizer.apply_chat_template(copied, add_generation_prompt=True, tokenize=tokenize, return_dict=False)

    try:
        rendered = applied(tokenize=False)
    except Exception:  # Python's own errors come through, too.
        return None
    return [checksum(rendered.encode()), *of_ids(applied(tokenize=True))]


def main(directories: Path, output: Path) -> None:
    if transformers.__version__ != VERSION:
        sys.exit(f"transformers {VERSION} is wanted, not {transformers.__version__}")
    texts = [text if isinstance(text, str) else text[0] * text[1] for text in TEXTS]

    def lines(values: list) -> str:
        return "[\n" + ",\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n]"

    def of_tokenizer(directory: Path) -> str:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        about_texts = lines([of_text(tokenizer, text) for text in texts])
        about_conversations = lines([of_conversation(tokenizer, messages) for messages in CONVERSATIONS])
        return f'"{directory.name}": {{"texts": {about_texts},\n"conversations": {about_conversations}}}'

    tokenizers = ",\n".join(of_tokenizer(directory) for directory in sorted(directories.iterdir()))
    output.write_text(
        f'{{"made_by": "transformers {VERSION}",\n"texts": {lines(TEXTS)},\n"conversations": {lines(CONVERSATIONS)},\n'
        f'"tokenizers": {{\n{tokenizers}\n}}}}\n'
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
