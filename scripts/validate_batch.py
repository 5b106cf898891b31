"""Holds a batch and its answers to the types of the `openai` package.

Usage: validate_batch.py BATCH ANSWERS, both JSON lines. Prints the number of answers of each kind, or the first line that is no such
thing. Strict: an integer in the place of a text is a mistake, which the client would let pass.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as CompletionParams
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

TYPES = {"/v1/chat/completions": (ChatParams, ChatCompletion), "/v1/completions": (CompletionParams, Completion)}

# Fields of vLLM's own, which OpenAI's types do not know.
OF_VLLM = {"min_p", "top_k", "min_tokens", "stop_token_ids", "repetition_penalty", "ignore_eos"}


def check_request(line: dict) -> None:
    params, _ = TYPES[line["url"]]
    assert line["method"] == "POST" and isinstance(line["custom_id"], str)
    body = {name: value for name, value in line["body"].items() if name not in OF_VLLM}
    TypeAdapter(with_config(ConfigDict(extra="forbid"))(params)).validate_python(body)


def check_answer(question: dict, line: dict) -> str:
    assert line["custom_id"] == question["custom_id"] and isinstance(line["id"], str)
    if line["error"] is not None:
        assert line["response"] is None and set(line["error"]) == {"code", "message"}
        return line["error"]["code"]
    assert line["response"]["status_code"] == 200 and isinstance(line["response"]["request_id"], str)
    _, response = TYPES[question["url"]]
    answer = response.model_validate_json(json.dumps(line["response"]["body"]), strict=True)
    choices, usage, asked = answer.choices, answer.usage, question["body"]
    assert [choice.index for choice in choices] == list(range(asked.get("n", 1)))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    for choice in choices:
        if isinstance(answer, ChatCompletion):
            check_chat_logprobs(asked, choice)
        else:
            check_logprobs(asked, choice)
    return answer.object


def check_chat_logprobs(asked: dict, choice) -> None:
    if not asked.get("logprobs"):
        assert choice.logprobs is None
        return
    for token in choice.logprobs.content:
        assert bytes(token.bytes).decode() == token.token and token.logprob <= 1e-6
        assert len(token.top_logprobs) == asked.get("top_logprobs", 0)
        found = [top.logprob for top in token.top_logprobs]
        assert found == sorted(found, reverse=True)


def check_logprobs(asked: dict, choice) -> None:
    if asked.get("logprobs") is None:
        assert choice.logprobs is None
        return
    logprobs = choice.logprobs
    count = len(logprobs.tokens)
    assert count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    for token, top in zip(logprobs.tokens, logprobs.top_logprobs):
        assert token in top and len(top) <= asked["logprobs"] + 1


def main(batch: Path, answers: Path) -> None:
    questions = [json.loads(line) for line in batch.read_text().splitlines() if line.strip()]
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(questions) == len(lines), f"{len(questions)} questions and {len(lines)} answers"
    kinds = Counter()
    for number, (question, line) in enumerate(zip(questions, lines), 1):
        try:
            check_request(question)
            kinds[check_answer(question, line)] += 1
        except (AssertionError, ValidationError, KeyError) as error:
            sys.exit(f"line {number}: {type(error).__name__}: {error}\n{json.dumps(line)[:2000]}")
    print(json.dumps(kinds, sort_keys=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
