"""What Hugging Face transformers makes of conversations with the templates in a directory.

Usage: golden_chat.py DIRECTORY. Needs transformers and jinja2, but not torch. Formats: tests/golden/README.md.
"""

import datetime
import json
import sys
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)

NAMED_TOKENS = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
}

USER = {"role": "user", "content": "  What is 2 < 3 & \"4\" > 'ü'?\n"}
SYSTEM = {"role": "system", "content": " Be brief. \n"}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n True. "}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"b": [1, 2.5, None], "a": "<é'>", "c": {}}}}],
}
RESULT = {"role": "tool", "content": '{"sum": 3}'}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, {"role": "user", "content": "Why?"}],
    [SYSTEM, USER, ASSISTANT, {"role": "user", "content": ""}],
    [USER, CALL, RESULT],
    [USER, USER],
    [{"role": "critic", "content": "No."}],
    [USER, {"role": "assistant", "content": "Sum", "refusal": None, "audio": True, "tool_calls": []}],
]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template: str, messages: list, named_tokens: dict) -> dict:
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=True, **named_tokens
        )
    except jinja2.exceptions.TemplateError as error:
        return {"messages": messages, "refused": error.message}
    return {"messages": messages, "rendered": rendered[0]}


def main() -> None:
    # transformers asks `datetime.now()`; the fixtures must not change from day to day.
    chat_template_utils.datetime = Clock
    for path in sorted(Path(sys.argv[1]).glob("*.jinja")):
        named_tokens = NAMED_TOKENS.get(path.stem, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
        cases = [render(path.read_text(), messages, named_tokens) for messages in CONVERSATIONS]
        document = {"now": NOW.isoformat() + "Z", "named_tokens": named_tokens, "cases": cases}
        path.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
