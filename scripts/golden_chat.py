"""What Hugging Face transformers makes of conversations with the templates in a directory.

Usage: golden_chat.py DIRECTORY: renders its templates. golden_chat.py DIRECTORY TEMPLATES: renders the templates of real
models in TEMPLATES (scripts/real-files) and writes checksums to DIRECTORY/real.json; renders the templates of
DIRECTORY/features.json, too. Needs transformers and jinja2, but not torch. Formats: tests/golden/README.md.
"""

import copy
import datetime
import hashlib
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


def without_nulls(messages: list) -> list:
    """A copy, as `apply_chat_template` passes it on."""
    return [{key: value for key, value in copy.deepcopy(message).items() if value is not None} for message in messages]


def render(template: str, messages: list, named_tokens: dict) -> dict:
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[without_nulls(messages)], chat_template=template, add_generation_prompt=True, **named_tokens
        )
    except jinja2.exceptions.TemplateError as error:
        return {"messages": messages, "refused": error.message}
    return {"messages": messages, "rendered": rendered[0]}


REAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LOOKUP = {"type": "function", "id": "call_123", "function": {"name": "look_up", "arguments": {"q": "a \"b\"", "n": 2, "x": None}}}
FOUND = {"role": "tool", "tool_call_id": "call_123", "name": "look_up", "content": "[1, 2]"}
REAL_CONVERSATIONS = CONVERSATIONS[:7] + [
    [{"role": "user", "content": ""}],
    [SYSTEM, USER, {"role": "assistant", "content": "", "tool_calls": [LOOKUP]}, FOUND],
    [SYSTEM, USER, {"role": "assistant", "content": "", "tool_calls": [LOOKUP]}, FOUND, ASSISTANT, USER],
    [USER, {"role": "assistant", "content": "Looking.", "tool_calls": [LOOKUP, dict(LOOKUP, id="call_124")]}, FOUND, FOUND],
    [USER, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2\nis 4"}, USER],
    [{"role": "user", "content": "line\r\nline\t<|im_end|> {{ x }} {% y %} \\ 你好 🙂 \u00a0"}],
    [{"role": "developer", "content": "Answer."}, USER],
    [USER, {"role": "assistant", "content": "One"}],
    [SYSTEM, SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER],
]


def rendered_or_none(template: str, messages: list, named_tokens: dict) -> str | None:
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[without_nulls(messages)], chat_template=template, add_generation_prompt=True, **named_tokens
        )
    except Exception:  # Python's own errors come through, too.
        return None
    return rendered[0]


def real(directory: Path, templates: Path) -> None:
    sums = {}
    for path in sorted(templates.glob("*.jinja")):
        texts = [rendered_or_none(path.read_text(), messages, REAL_TOKENS) for messages in REAL_CONVERSATIONS]
        sums[path.stem] = [text and f"{hashlib.md5(text.encode()).hexdigest()} {len(text)}" for text in texts]
    document = {"now": NOW.isoformat() + "Z", "named_tokens": REAL_TOKENS, "conversations": REAL_CONVERSATIONS, "sums": sums}
    (directory / "real.json").write_text(json.dumps(document, indent=0, ensure_ascii=False) + "\n")


def features(path: Path) -> None:
    """Each entry is [template, text]; None where it is refused. The texts are written anew."""
    entries = [[template, rendered_or_none(template, [USER], {})] for template, *_ in json.loads(path.read_text())]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n")


def main() -> None:
    # transformers asks `datetime.now()`; the fixtures must not change from day to day.
    chat_template_utils.datetime = Clock
    if len(sys.argv) == 3:
        real(Path(sys.argv[1]), Path(sys.argv[2]))
        features(Path(sys.argv[1]) / "features.json")
        return
    for path in sorted(Path(sys.argv[1]).glob("*.jinja")):
        named_tokens = NAMED_TOKENS.get(path.stem, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
        cases = [render(path.read_text(), messages, named_tokens) for messages in CONVERSATIONS]
        document = {"now": NOW.isoformat() + "Z", "named_tokens": named_tokens, "cases": cases}
        path.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
