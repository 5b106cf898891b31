"""What llama.cpp answers to prompts when it always takes the likeliest token.

Usage: golden_answers.py FOLDER OUTPUT, where FOLDER holds the GGUF files (scripts/real-files). Format: tests/golden/README.md.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

import xllamacpp

NEW_TOKENS = 48
# llama.cpp rounds activations to 8 bits, so that of two tokens nearly as likely as each other either may come first; these
# prompts leave little doubt. Answers to the conversations end by themselves.
PROMPTS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": [
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10,",
        "été, hiver, été, hiver, été,",
        "The capital of France is",
        [
            {"role": "user", "content": "What is the capital of Italy?"},
            {"role": "assistant", "content": "The capital of Italy is Rome."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."},
            {"role": "user", "content": "What is the capital of Japan?"},
        ],
        [
            {"role": "system", "content": "You repeat what the user says."},
            {"role": "user", "content": "The quick brown fox jumps over the lazy dog."},
            {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog."},
            {"role": "user", "content": "It is a truth universally acknowledged."},
        ],
        [
            {"role": "user", "content": "Say the numbers from 1 to 5."},
            {"role": "assistant", "content": "1, 2, 3, 4, 5"},
            {"role": "user", "content": "Say the numbers from 1 to 10."},
        ],
    ],
    # A model that was not trained on conversations, in a file without a template: turns are written out, and what ends by
    # itself are files.
    "gemma-3-270m-q4_k_m.gguf": [
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10,",
        "🙂🙃🙂🙃🙂🙃🙂",
        "1 + 1 = 2\n2 + 2 = 4\n3 + 3 = 6\n4 + 4 =",
        "def fibonacci(n):\n    if n <= 1:\n        return n\n    return",
        "We the People of the United States, in Order to form a more perfect Union,",
        # Longer than the window of 512 tokens that most of its layers have.
        ", ".join(map(str, range(1, 131))) + ",",
        "<start_of_turn>user\nWhat is the capital of Italy?<end_of_turn>\n<start_of_turn>model\n"
        "The capital of Italy is Rome.<end_of_turn>\n<start_of_turn>user\nWhat is the capital of Spain?<end_of_turn>\n"
        "<start_of_turn>model\n",
        '<?xml version="1.0" encoding="UTF-8"?>\n<list>\n  <item>one</item>\n  <item>two</item>\n</list>',
        "<!DOCTYPE html>\n<html>\n<head>\n  <title>Three things</title>\n</head>\n<body>\n<ul>\n  <li>one</li>\n"
        "  <li>two</li>\n  <li>three</li>\n</ul>\n</body>\n",
        'if __name__ == "__main__":\n    main',
    ],
}


def server(gguf: Path):
    """A function that asks llama.cpp's server, whose thread ends with the process."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx, parameters.n_parallel, parameters.port = 1024, 1, 0
    parameters.cpuparams.n_threads = 1
    parameters.use_jinja = True
    running = xllamacpp.Server(parameters)

    def ask(path: str, **body):
        request = urllib.request.Request(running.listening_address + path, json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    return ask


def answer(ask, prompt: str | list) -> dict:
    rendered = prompt if isinstance(prompt, str) else ask("/apply-template", messages=prompt)["prompt"]
    ids = ask("/tokenize", content=rendered, add_special=True, parse_special=True)["tokens"]
    reply = ask(
        "/completion", prompt=ids, n_predict=NEW_TOKENS, temperature=0, n_probs=2, return_tokens=True, cache_prompt=False
    )
    tokens = []
    for step in reply["completion_probabilities"]:
        first, second = step["top_logprobs"]
        assert first["id"] == step["id"]
        tokens.append([step["id"], step["token"], round(first["logprob"] - second["logprob"], 2)])
    ends = reply["stop_type"] == "eos"
    shown = tokens[:-1] if ends else tokens
    assert "".join(piece for _, piece, _ in shown) == reply["content"], reply["content"]
    conversation = {} if isinstance(prompt, str) else {"messages": prompt}
    return conversation | {"prompt": rendered, "ids": ids, "answer": tokens, "ends": ends}


def main(folder: Path, output: Path) -> None:
    def of_file(name: str, prompts: list) -> str:
        ask = server(folder / name)
        answers = ",\n".join(json.dumps(answer(ask, prompt), ensure_ascii=False) for prompt in prompts)
        return f'"{name}": [\n{answers}\n]'

    files = ",\n".join(of_file(name, prompts) for name, prompts in PROMPTS.items())
    output.write_text(f'{{"made_by": "llama.cpp as in xllamacpp {xllamacpp.__version__}",\n"files": {{\n{files}\n}}}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    # The servers' threads would keep the process.
    os._exit(0)
