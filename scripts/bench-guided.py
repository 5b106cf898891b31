"""Rounds of the same lines with and without a grammar, in turn: scripts/bench-guided says how."""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

# Long enough for no answer to be complete before it has its tokens.
SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "active": {"type": "boolean"},
        },
        "required": ["name", "age", "tags", "active"],
        "additionalProperties": False,
    },
}

KINDS = {
    "free": {},
    "json_schema": {"guided_json": SCHEMA},
    # SmolLM2's tokens that end a text are as good as ruled out: a sentence could end at each of its spaces.
    "regex": {"guided_regex": r"([A-Za-z]{1,12}[ ,.])+", "logit_bias": {"0": -100, "2": -100}},
    # Each repetition is a state of its own, which no other sequence has been in.
    "counted": {"guided_regex": r"([A-Za-z]{1,12}[ ,.]){1000}"},
}


def run(options, folder, kind, round):
    lines = [
        {"prompt": f"Some people, as a list. Number {number}:", "max_tokens": options.tokens, "temperature": 0.7,
         "seed": number, "ignore_eos": True, **KINDS[kind]}
        for number in range(options.sequences)
    ]
    dataset, results = os.path.join(folder, f"{kind}.jsonl"), os.path.join(folder, f"{kind}-{round}")
    with open(dataset, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    subprocess.run(
        [options.flashjob, "--model", options.model, "--dataset=jsonl", "--dataset-path", dataset, "--results-dir", results,
         "--metrics-port=0", "--metrics-linger-seconds=0", "--device=cpu", f"--max-num-seqs={options.sequences}",
         "--measure-limits=false"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    with open(os.path.join(results, "result.json")) as file:
        result = json.load(file)
    metrics = result["metrics"]
    expected = options.sequences * options.tokens
    if metrics["total_output_tokens"] != expected:
        raise SystemExit(f"{kind}: {metrics['total_output_tokens']} tokens instead of {expected}; see {results}")
    return metrics["output_tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flashjob", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    rates = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for round in range(options.rounds):
            for kind in KINDS:
                rates[kind].append(run(options, folder, kind, round))
                print(f"round {round + 1}: {kind:12} {rates[kind][-1]:9.1f} tokens/s", flush=True)
    for kind in KINDS:
        ratios = [rate / free for rate, free in zip(rates[kind], rates["free"])]
        print(f"{kind:12} {statistics.median(rates[kind]):9.1f} tokens/s, {statistics.median(ratios):.3f} of free "
              f"({min(ratios):.3f} to {max(ratios):.3f})")


main()
