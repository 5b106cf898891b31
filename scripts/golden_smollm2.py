"""What llama.cpp and transformers make of SmolLM2's real tokenizer and weights.

Usage: golden_smollm2.py GGUF OUTPUT.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

import torch
import xllamacpp
from transformers import AutoModelForCausalLM

import golden_gguf

TEXTS = golden_gguf.TEXTS + [
    "def f(x):\n    return x**2  # squared\n",
    "1,234.56 and 0x1F; the 3rd of 12\n\n\n   indented",
    "The capital of France is",
]


def llama_cpp_ids(gguf: Path) -> list[list[int]]:
    """Token ids of TEXTS from llama.cpp's server; its thread ends with the process."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx, parameters.n_parallel, parameters.port = 512, 1, 0
    server = xllamacpp.Server(parameters)

    def ids(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body)
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]

    return [ids(text) for text in TEXTS]


@torch.no_grad()
def transformers_logits(gguf: Path, prompt: list[int]) -> dict:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    )
    last = model(torch.tensor([prompt])).logits[0, -1]
    values, ids = last.topk(8)
    return {
        "prompt": prompt,
        "smallest": float(last.min()),
        "likeliest": [[token, value] for token, value in zip(ids.tolist(), values.tolist())],
    }


def main(gguf: Path, output: Path) -> None:
    ids = llama_cpp_ids(gguf)
    logits = transformers_logits(gguf, ids[-1])
    tokens = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in map(list, zip(TEXTS, ids)))
    output.write_text(f'{{"logits": {json.dumps(logits)},\n"tokens": [\n{tokens}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    # The server's threads would keep the process.
    os._exit(0)
