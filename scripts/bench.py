"""Whole jobs of flashjob and of other engines: the same weights, prompts, threads and number format, rounds interleaved.

Each engine runs in a process of its own, loads its weights, warms up on one prompt, and times only what flashjob calls the
measured region: from handing over the first prompt to the last token of the last request. Greedy, end of sequence ignored.
The roofline is that of flashjob's own run (`roofline_seconds` in result.json): the machine's limits are measured just before and after it.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Name: weights, number format, prompts, tokens in, tokens out.
WORKS = {
    "smol 16": ("smol", "float32", 16, 128, 128),
    "smol 64": ("smol", "float32", 64, 128, 128),
    "1b 8": ("1b", "float16", 8, 128, 32),
}
# How widths of the Llama-3.2-1B shape are called in GGUF files. Its weights are random: only their number matters here.
LLAMA_1B = {
    "block_count": 16,
    "context_length": 4096,
    "embedding_length": 2048,
    "feed_forward_length": 8192,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
}
LLAMA_1B_VOCABULARY = 128256
ENGINES = ["flashjob", "openvino", "transformers"]
# 16-bit weights are computed with in single precision by flashjob and OpenVINO. torch has no fast product for them on most
# processors: it gets them in single precision, which is what its users do.
THREADS = 2


def prompts(count: int, length: int) -> list[list[int]]:
    """Distinct random prompts, the same for every engine but flashjob, whose own are as random."""
    generator = random.Random(0)
    return [[generator.randrange(100, 49000) for _ in range(length)] for _ in range(count)]


def rewritten_in_half_precision(source: Path, target: Path) -> None:
    """The same model with every matrix in float16: what all engines read."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = 1 if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=sub_type)
    for tensor in reader.tensors:
        numbers = quants.dequantize(tensor.data, tensor.tensor_type)
        kind = GGMLQuantizationType.F32 if len(tensor.shape) == 1 else GGMLQuantizationType.F16
        writer.add_tensor(tensor.name, quants.quantize(numbers, kind), raw_dtype=kind)
    finish(writer)


def random_1b(source: Path, target: Path) -> None:
    """A file of Llama-3.2-1B's shape with the tokenizer of another model."""
    import numpy
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    generator = numpy.random.default_rng(0)
    writer = GGUFWriter(target, "llama")
    for name, value in LLAMA_1B.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_uint32("llama.vocab_size", LLAMA_1B_VOCABULARY)
    writer.add_uint32("llama.rope.dimension_count", 64)
    writer.add_uint32("general.file_type", 1)
    for field in GGUFReader(source).fields.values():
        if field.name.startswith("tokenizer."):
            kind = field.types[0]
            sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)

    def matrix(name: str, rows: int, columns: int) -> None:
        numbers = generator.standard_normal((rows, columns), dtype=numpy.float32) * columns**-0.5
        writer.add_tensor(name, numbers.astype(numpy.float16))

    def norm(name: str) -> None:
        writer.add_tensor(name, numpy.ones(hidden, dtype=numpy.float32))

    hidden, inner = LLAMA_1B["embedding_length"], LLAMA_1B["feed_forward_length"]
    kv = hidden * LLAMA_1B["attention.head_count_kv"] // LLAMA_1B["attention.head_count"]
    matrix("token_embd.weight", LLAMA_1B_VOCABULARY, hidden)
    for layer in range(LLAMA_1B["block_count"]):
        for name, rows, columns in [
            ("attn_q", hidden, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ]:
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
    norm("output_norm.weight")
    finish(writer)


def finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights_of(name: str, source: Path) -> Path:
    """Makes the file once, beside the one it is made from."""
    target = source.parent / f"bench-{name}-f16.gguf"
    if not target.exists():
        print(f"writing {target.name}", file=sys.stderr)
        half_made = target.with_suffix(".part")
        (rewritten_in_half_precision if name == "smol" else random_1b)(source, half_made)
        half_made.rename(target)
    return target


def run_flashjob(binary: str, weights: Path, dtype: str, count: int, length: int, output: int) -> dict:
    """The figures of result.json."""
    with tempfile.TemporaryDirectory() as results:
        subprocess.run(
            [binary, "--model", weights, "--dtype", dtype, "--device=cpu", f"--threads={THREADS}"]
            + [f"--num-prompts={count}", f"--input-len={length}", f"--output-len={output}"]
            + ["--metrics-port=0", "--metrics-linger-seconds=0", "--results-dir", f"{results}/out"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return json.loads(Path(f"{results}/out/result.json").read_text())["metrics"]


def run_openvino(weights: Path, dtype: str, count: int, length: int, output: int) -> float:
    """Seconds of its continuous batching."""
    import numpy
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(weights), scheduler, "CPU", {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    )
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample, config.apply_chat_template = output, True, False, False
    tensors = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts(count + 1, length)]
    pipeline.generate(tensors[:1], [config])
    start = time.perf_counter()
    answers = pipeline.generate(tensors[1:], [config] * count)
    seconds = time.perf_counter() - start
    assert [len(answer.m_generation_ids[0]) for answer in answers] == [output] * count, "OpenVINO stopped early"
    return seconds


def run_transformers(weights: Path, dtype: str, count: int, length: int, output: int) -> float:
    """Seconds of one static batch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32).eval()
    tokens = torch.tensor(prompts(count + 1, length))

    def generate(batch) -> int:
        mask = torch.ones_like(batch)
        made = model.generate(
            batch, attention_mask=mask, do_sample=False, min_new_tokens=output, max_new_tokens=output, pad_token_id=0
        )
        return made.shape[1] - length

    with torch.inference_mode():
        generate(tokens[:1])
        start = time.perf_counter()
        made = generate(tokens[1:])
        seconds = time.perf_counter() - start
    assert made == output, "transformers stopped early"
    return seconds


def in_own_process(engine: str, arguments: list) -> float | None:
    """Seconds of a peer, or None where it does not run here (it says why)."""
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--peer", engine, json.dumps(arguments)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        print(f"{engine} does not run: {finished.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return float(finished.stdout.strip().splitlines()[-1])


def compare(binary: str, source: Path, rounds: int, only: str | None) -> None:
    print(f"{rounds} rounds, interleaved; {THREADS} threads; load average {os.getloadavg()[0]:.2f}")
    print(f"{'work':<10}{'engine':<14}{'median s':>9}{'all':>26}{'of roofline':>13}{'flashjob is':>13}")
    for work, (name, dtype, count, length, output) in WORKS.items():
        if only and only not in work:
            continue
        weights = weights_of(name, source)
        seconds, fractions, limits = {engine: [] for engine in ENGINES}, [], []
        for _ in range(rounds):
            for engine in ENGINES:
                if engine == "flashjob":
                    figures = run_flashjob(binary, weights, dtype, count, length, output)
                    seconds[engine].append(figures["elapsed_time"])
                    # None where something else held the processors up while limits were measured.
                    fractions.append(figures.get("roofline_fraction"))
                    limits.append(figures)
                else:
                    took = in_own_process(engine, [str(weights), dtype, count, length, output])
                    seconds[engine] += [] if took is None else [took]
        ours = statistics.median(seconds["flashjob"])
        # The machine at its best: other tenants slow down limits and runs alike, but seldom both.
        roofline = min((f["roofline_seconds"] for f in limits if "roofline_seconds" in f), default=math.nan)
        print(
            f"{work:<10}{'roofline':<14}{roofline:>9.2f}"
            f"  {max(f['limit_flops_per_second'] for f in limits) / 1e9:.0f} GFLOP/s,"
            f" {max(f['limit_memory_bytes_per_second'] for f in limits) / 1e9:.0f} GB/s at best"
        )
        for engine, taken in seconds.items():
            if taken:
                median = statistics.median(taken)
                each = " ".join(f"{s:.2f}" for s in taken)
                times = "" if engine == "flashjob" else f"{median / ours:.2f} ×"
                print(f"{work:<10}{engine:<14}{median:>9.2f}{each:>26}{roofline / median:>13.2f}{times:>13}", flush=True)
        own = " ".join("unknown" if fraction is None else f"{fraction:.2f}" for fraction in fractions)
        print(f"{work:<10}flashjob beside the limits that each of its runs measured for itself: {own}")


def scale(binary: str, source: Path, path: Path) -> None:
    """Time of a decode step over batch sizes and over contexts, as a picture and as numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    weights = weights_of("smol", source)
    # Longer than prompts take to be taken in: then most steps are decode steps, and so is the median.
    step = lambda count, length: run_flashjob(binary, weights, "float32", count, length, 64)["itl_seconds_p50"] * 1e3
    batches = [(count, step(count, 128)) for count in [1, 2, 4, 8, 16, 32, 64, 128, 256]]
    contexts = [(length, step(1, length)) for length in [128, 512, 1024, 2048, 4096, 8128]]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for axes, points, label in [(left, batches, "sequences, 128 tokens each"), (right, contexts, "tokens of one sequence")]:
        axes.plot(*zip(*points), marker="o")
        axes.set(xlabel=label, ylabel="decode step, ms", xlim=0, ylim=0)
        print(f"decode step, ms, by {label}: " + ", ".join(f"{x}: {y:.1f}" for x, y in points))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"drawn in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="the flashjob that is measured")
    parser.add_argument("--weights", type=Path, help="SmolLM2 as a GGUF file")
    parser.add_argument("--rounds", type=int, default=3, help="times that each engine runs each work")
    parser.add_argument("--only", help=f"works whose names contain this; there are {', '.join(WORKS)}")
    parser.add_argument("--plot", type=Path, help="draw the time of a step over batch and context instead")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        engine, work = arguments.peer
        weights, *rest = json.loads(work)
        print({"openvino": run_openvino, "transformers": run_transformers}[engine](Path(weights), *rest))
    elif arguments.plot:
        scale(arguments.binary, arguments.weights, arguments.plot)
    else:
        compare(arguments.binary, arguments.weights, arguments.rounds, arguments.only)


if __name__ == "__main__":
    main()
