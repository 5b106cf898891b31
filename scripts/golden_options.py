"""What transformers makes of logits with a request's options, and which tokens may follow.

Usage: golden_options.py OUTPUT. Needs transformers and torch. Format: tests/golden/README.md. What transformers has no processor for
(presence and frequency penalties) is computed here by vLLM's formulas.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VERSION = "5.23.0"
WIDTH = 96
ROWS = 6

# Each of them alone, then together.
OPTIONS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 0.8},
    {"frequency_penalty": -1.2},
    {"logit_bias": {"3": 5.0, "95": -100.0, "0": 0.5}},
    {"min_tokens": 9, "stop_token_ids": [7, 50], "max_tokens": 20},
    {"min_tokens": 3, "stop_token_ids": [7, 50], "max_tokens": 20},
    {"temperature": 0.7, "min_p": 0.2},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "min_p": 0.1, "top_k": 4},
    {"temperature": 1.3, "min_p": 0.02, "top_p": 0.9},
    {"temperature": 0.9, "top_k": 12, "repetition_penalty": 1.1, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    {
        "temperature": 1.1,
        "min_p": 0.03,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.4,
        "logit_bias": {"5": 2.0, "7": 4.0, "11": -3.0},
        "min_tokens": 30,
        "stop_token_ids": [7],
        "max_tokens": 40,
    },
]


class Penalties:
    """Presence and frequency penalties, counted over generated tokens (vLLM's `apply_penalties`)."""

    def __init__(self, prompt_length: int, presence: float, frequency: float):
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.zeros_like(scores)
        for token in ids[0, self.prompt_length :].tolist():
            counts[0, token] += 1
        return scores - self.frequency * counts - self.presence * (counts > 0)


def processors(options: dict, prompt: list[int]) -> tuple[LogitsProcessorList, LogitsProcessorList]:
    """Those that change logits, in vLLM's order, and those that leave tokens out."""
    changing, leaving_out = LogitsProcessorList(), LogitsProcessorList()
    if bias := options.get("logit_bias"):
        changing.append(SequenceBiasLogitsProcessor([[[int(token)], value] for token, value in bias.items()]))
    if least := options.get("min_tokens"):
        ends = options["stop_token_ids"]
        changing.append(MinNewTokensLengthLogitsProcessor(len(prompt), least, ends, device="cpu"))
    if (penalty := options.get("repetition_penalty", 1.0)) != 1.0:
        changing.append(RepetitionPenaltyLogitsProcessor(penalty))
    presence, frequency = (options.get(name, 0.0) for name in ("presence_penalty", "frequency_penalty"))
    if presence or frequency:
        changing.append(Penalties(len(prompt), presence, frequency))
    if temperature := options.get("temperature"):
        leaving_out.append(TemperatureLogitsWarper(temperature))
    if share := options.get("min_p"):
        leaving_out.append(MinPLogitsWarper(share))
    if count := options.get("top_k"):
        leaving_out.append(TopKLogitsWarper(count))
    if share := options.get("top_p"):
        leaving_out.append(TopPLogitsWarper(share))
    return changing, leaving_out


def case(options: dict, logits: torch.Tensor, prompt: list[int], generated: list[int]) -> dict:
    ids = torch.tensor([prompt + generated])
    changing, leaving_out = processors(options, prompt)
    changed = changing(ids, logits[None].clone())
    warped = leaving_out(ids, changed.clone())
    rounded = [None if value == float("-inf") else round(value, 5) for value in changed[0].tolist()]
    return {
        "logits": [round(value, 5) for value in logits.tolist()],
        "prompt": prompt,
        "generated": generated,
        "changed": rounded,
        "kept": torch.nonzero(warped[0] > float("-inf")).flatten().tolist(),
        "likeliest": int(changed[0].argmax()),
    }


def main(output: Path) -> None:
    if transformers.__version__ != VERSION:
        sys.exit(f"transformers {VERSION} is wanted, not {transformers.__version__}")
    random = torch.Generator().manual_seed(20)
    lines = []
    for options in OPTIONS:
        cases = []
        for row in range(ROWS):
            # Of few digits, so that what is written is what was computed with.
            logits = torch.round(torch.randn(WIDTH, generator=random) * 3 * 1000) / 1000
            tokens = torch.randint(0, WIDTH, (12 + row * 4,), generator=random).tolist()
            tokens[8:12] = [7, tokens[0], tokens[0], 50]
            cases.append(case(options, logits, tokens[:6], tokens[6:]))
        lines.append(json.dumps({"options": options, "cases": cases}))
    made = json.dumps(f"transformers {VERSION}")
    output.write_text(f'{{"made_by": {made},\n"of": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
