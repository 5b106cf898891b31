"""An engine under flashjob beside the same engine by itself: `vllm bench throughput`, or for SGLang the call that its own offline
benchmark makes (that benchmark wants a package for data sets, which its engine does not).

Each run is a process of its own that answers all requests several times; sides alternate, and so does which of them comes first. Both
read the same ShareGPT file, generate the same numbers of tokens with the same settings, and time the same: from handing over
requests to the last answer. Prints requests per second of each region, then medians over all regions and the ratio of flashjob's to
the engine's own, with the interval that a bootstrap over runs gives it (95 %).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "tests/golden/llama-gqa"

# A Llama that computes for some milliseconds a step, so that what surrounds the computation is seen.
SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
}

# `vllm bench throughput` samples at temperature 1, and measures once. It has no settings for either.
RUN_VLLM = """
import json, sys, time
import vllm
from vllm.benchmarks import throughput
from vllm.utils.argparse_utils import FlexibleArgumentParser

temperature, regions, num_prompts, output, *words = sys.argv[1:]
rates = []

def in_regions(made):
    def generate(llm, prompts, sampling, **given):
        for one in sampling:
            # What follows from a temperature of 0 is set there.
            one.temperature = float(temperature)
            one.__post_init__()
        # Fewer are the benchmark's warm-up.
        for _ in range(int(regions) if len(prompts) == int(num_prompts) else 1):
            started = time.perf_counter()
            answers = made(llm, prompts, sampling, **given)
            rates.append(len(prompts) / (time.perf_counter() - started))
        return answers
    return generate

vllm.LLM.generate = in_regions(vllm.LLM.generate)
parser = FlexibleArgumentParser()
throughput.add_cli_args(parser)
throughput.main(parser.parse_args(words))
json.dump({"requests_per_second": rates[-int(regions):]}, open(output, "w"))
"""

# As sglang/benchmark/offline_throughput.py: an unmeasured round, half a second, one call of `generate` with texts, without streaming.
RUN_SGLANG = """
import json, sys, time

folder, requests, output, settings, temperature, regions = sys.argv[1:]
if __name__ == "__main__":
    sys.path.insert(0, folder)
    from sglang.srt.entrypoints.engine import Engine
    requests, settings = json.load(open(requests)), json.loads(settings)
    engine = Engine(**settings)
    prompts = [request["conversations"][0]["value"] for request in requests]
    def generate(prompts, tokens):
        sampling = {"temperature": float(temperature), "max_new_tokens": tokens, "ignore_eos": True}
        return engine.generate(prompt=prompts, sampling_params=[sampling] * len(prompts))
    generate(prompts[:16], 8)
    time.sleep(0.5)
    rates = []
    for _ in range(int(regions)):
        started = time.perf_counter()
        answers = generate(prompts, OUTPUT_LEN)
        rates.append(len(prompts) / (time.perf_counter() - started))
        count = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
        assert count == OUTPUT_LEN * len(prompts), count
    json.dump({"requests_per_second": rates}, open(output, "w"))
    engine.shutdown()
"""

PLATFORM = "[sglang.srt.platforms]\nflashjob = flashjob_sglang:platform\n"


def make_model(folder: Path) -> None:
    """Random weights, with the tokenizer of a fixture."""
    import numpy
    from safetensors.numpy import save_file

    config = {**json.loads((FIXTURE / "config.json").read_text()), **SHAPE, "dtype": "float16"}
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    generator = numpy.random.default_rng(0)

    def matrix(rows: int, columns: int):
        return (generator.standard_normal((rows, columns), dtype=numpy.float32) * columns**-0.5).astype(numpy.float16)

    ones = numpy.ones(hidden, dtype=numpy.float16)
    weights = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": ones}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, rows, columns in [
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ]:
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = ones
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((FIXTURE / name).read_bytes())


def make_requests(file: Path, count: int, length: int) -> None:
    """Conversations whose first turns are distinct texts of about `length` tokens."""
    generator = random.Random(0)
    words = ["the", "job", "reads", "a", "model", "and", "counts", "its", "tokens", "then", "writes", "results", "once", "more"]
    texts = [" ".join(generator.choice(words) for _ in range(max(1, length // 2))) for _ in range(count)]
    turns = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "an answer that is not asked for"}]}
        for text in texts
    ]
    file.write_text(json.dumps(turns))


class Bench:
    def __init__(self, options: argparse.Namespace, place: Path):
        self.options, self.place = options, place
        self.requests, self.result = place / "requests.json", place / "result.json"
        self.model = options.model or place / "model"
        if options.model is None:
            make_model(self.model)
        make_requests(self.requests, options.num_prompts, options.input_len)
        threads = str(options.threads)
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def run(self, command: list[str], result: Path) -> dict:
        log = self.place / "log"
        with log.open("wb") as file:
            done = subprocess.run(command, env=self.environment, stdout=file, stderr=file)
        if done.returncode != 0:
            sys.exit(f"{command[0]} ended with {done.returncode}:\n" + log.read_text(errors="replace")[-4000:])
        return json.loads(result.read_text())

    def under_flashjob(self, temperature: float) -> list[float]:
        options, results = self.options, self.place / "results"
        subprocess.run(["rm", "-rf", results], check=True)
        words = [
            options.binary,
            f"--backend={options.engine}",
            f"--model={self.model}",
            f"--results-dir={results}",
            "--dataset=sharegpt",
            f"--dataset-path={self.requests}",
            f"--output-len={options.output_len}",
            f"--num-prompts={options.num_prompts}",
            "--apply-chat-template=never",
            f"--temperature={temperature}",
            "--dtype=float32",
            "--max-model-len=1024",
            "--enforce-eager=true",
            "--warmup=16",
            f"--repeats={options.regions}",
            f"--threads={options.threads}",
            "--mlflow-uri=none",
            "--metrics-port=0",
            "--metrics-linger-seconds=0",
        ]
        words += ["--kv-cache-memory=512MiB"] if options.engine == "vllm" else ["--sglang-args=--max-total-tokens=32768"]
        found = self.run(words, results / "result.json")
        regions = found["repeats"]["regions"] if options.regions > 1 else [found]
        return [region["metrics"]["requests_per_second"] for region in regions]

    def alone(self, temperature: float) -> list[float]:
        return self.vllm(temperature) if self.options.engine == "vllm" else self.sglang(temperature)

    def vllm(self, temperature: float) -> list[float]:
        options = self.options
        words = [
            f"--model={self.model}",
            "--dataset-name=sharegpt",
            f"--dataset-path={self.requests}",
            f"--output-len={options.output_len}",
            f"--num-prompts={options.num_prompts}",
            "--num-warmups=16",
            "--dtype=float32",
            "--max-model-len=1024",
            "--enforce-eager",
            # flashjob's default: what is measured is not to be found.
            "--no-enable-prefix-caching",
            f"--kv-cache-memory-bytes={512 << 20}",
        ]
        first = map(str, (temperature, options.regions, options.num_prompts, self.result))
        return self.run([sys.executable, "-c", RUN_VLLM, *first, *words], self.result)["requests_per_second"]

    def sglang(self, temperature: float) -> list[float]:
        options, folder = self.options, self.place / "plugin"
        described = folder / "flashjob_sglang-0.dist-info"
        described.mkdir(parents=True, exist_ok=True)
        # The platform for processors without the hooks that observe.
        (folder / "flashjob_sglang.py").write_bytes((ROOT / "src/backend/sglang/plugin.py").read_bytes())
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: flashjob-sglang\nVersion: 0\n")
        (described / "entry_points.txt").write_text(PLATFORM)
        settings = {
            "model_path": str(self.model),
            "device": "cpu",
            "dtype": "float32",
            "context_length": 1024,
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "disable_cuda_graph": True,
            "disable_radix_cache": True,
            "max_total_tokens": 32768,
            "sleep_on_idle": True,
            "log_level": "warning",
        }
        script = RUN_SGLANG.replace("OUTPUT_LEN", str(options.output_len))
        words = [folder, self.requests, self.result, json.dumps(settings), temperature, options.regions]
        return self.run([sys.executable, "-c", script, *map(str, words)], self.result)["requests_per_second"]


def median(runs: list[list[float]]) -> float:
    return statistics.median(rate for run in runs for rate in run)


def interval(ours: list[list[float]], alone: list[list[float]]) -> tuple[float, float]:
    """Bootstrap over runs, as regions of one process are not independent: what a processor does to it lasts."""
    generator = random.Random(0)

    def drawn(runs: list[list[float]]) -> float:
        return median(generator.choices(runs, k=len(runs)))

    ratios = sorted(drawn(ours) / drawn(alone) for _ in range(4000))
    return ratios[100], ratios[-101]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="flashjob")
    parser.add_argument("--engine", choices=["vllm", "sglang"], default="vllm")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides at each temperature")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--regions", type=int, default=3, help="of each run")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=64, help="about so many tokens a prompt")
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="of the computation, which leaves a processor to the processes around it")
    parser.add_argument("--model", type=Path, help="a directory in Hugging Face layout, instead of a small random Llama")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(options, Path(place))
        figures = {temperature: {"flashjob": [], "alone": []} for temperature in options.temperature}
        for round_number in range(options.rounds):
            for temperature in options.temperature:
                sides = [("flashjob", bench.under_flashjob), ("alone", bench.alone)]
                for side, run in sides if round_number % 2 == 0 else reversed(sides):
                    found = run(temperature)
                    figures[temperature][side].append(found)
                    rates = ", ".join(f"{rate:.3f}" for rate in found)
                    print(f"round {round_number + 1}, temperature {temperature:g}, {side}: {rates} requests/s", flush=True)
        for temperature, of_sides in figures.items():
            ours, alone = of_sides["flashjob"], of_sides["alone"]
            low, high = interval(ours, alone)
            print(
                f"{options.engine}, temperature {temperature:g}: median under flashjob {median(ours):.3f}, alone {median(alone):.3f} "
                f"requests/s; ratio {median(ours) / median(alone):.3f} ({low:.3f} to {high:.3f})"
            )


# Processes of the engines import this file again.
if __name__ == "__main__":
    main()
