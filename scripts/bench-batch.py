"""Memory of a batch over time, and lines per second beside `vllm run-batch`.

`memory` generates a file of lines of 1 kB and answers it with an engine that answers at once (bench-batch-engine.py), or with our own
engine and a model of random weights. It samples the memory of the job's process tree (proportional set sizes, without the engine that
answers at once), draws it over time and prints the most beyond the first answers.

`vllm` answers a few hundred lines of an OpenAI batch with SmolLM2-135M on the CPU, by flashjob and by `vllm run-batch` in turn, each a process of
its own, and prints lines per second of each round, from the start of a process to its end and without loading, with the ratio of medians.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/golden/llama-gqa"
RESULTS = ROOT / "target/bench-batch"
LINE_BYTES = 1000
WORDS = ["the", "job", "reads", "a", "model", "and", "counts", "its", "tokens", "then", "writes", "results", "once", "more"]


def make_lines(path: Path, count: int) -> None:
    """Lines of LINE_BYTES, each with a prompt of its own."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=400)) for _ in range(1000)]
    with path.open("w", buffering=1 << 22) as file:
        for number in range(count):
            head = f'{{"id": {number}, "max_tokens": 1, "prompt": "{number} '
            file.write(head + texts[number % len(texts)][: LINE_BYTES - len(head) - 3] + '"}\n')


def tree(root: int) -> list[int]:
    """Processes from `root` downwards."""
    found, children = [], {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    waiting = [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += children.get(process, [])
    return found


def memory_bytes(root: int) -> int:
    """Memory of a process tree: pages that processes share are counted once."""
    total = 0
    for process in tree(root):
        try:
            if b"bench-batch-engine" in Path(f"/proc/{process}/cmdline").read_bytes():
                continue
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) * 1024
    return total


def answered(results: Path) -> int:
    """Lines of finished shards."""
    try:
        lines = (results / "outputs/manifest.jsonl").read_text().splitlines()[1:]
        kinds = ("completed", "invalid", "too_long", "unsupported", "non_finite", "failed")
        return sum(sum(json.loads(line).get("counts", {}).get(kind, 0) for kind in kinds) for line in lines)
    except (OSError, ValueError):
        return 0


def svg(samples: list[tuple[float, int, int]], title: str) -> str:
    """A plot of megabytes over seconds."""
    width, height, left, bottom = 760, 300, 60, 40
    longest = samples[-1][0]
    most = max(sample[1] for sample in samples) / 1e6
    top = next(tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 1e9) if tick >= most)
    x = lambda seconds: left + (width - left - 20) * seconds / longest
    y = lambda megabytes: height - bottom - (height - bottom - 30) * megabytes / top
    points = " ".join(f"{x(at):.1f},{y(bytes_ / 1e6):.1f}" for at, bytes_, _ in samples)
    ticks = "".join(
        f'<path d="M{left} {y(top * part / 4):.1f}H{width - 20}" stroke="#ddd"/>'
        f'<text x="{left - 6}" y="{y(top * part / 4) + 4:.1f}" text-anchor="end">{top * part / 4:g}</text>'
        for part in range(5)
    ) + "".join(
        f'<text x="{x(longest * part / 4):.1f}" y="{height - 20}" text-anchor="middle">{longest * part / 4:.0f}</text>'
        for part in range(5)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="{left}" y="18" font-size="13">{title}</text>{ticks}'
        f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">seconds</text><text x="4" y="18">MB</text>'
        f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/></svg>\n'
    )


def measure_memory(given: argparse.Namespace) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-batch-") as folder:
        folder = Path(folder)
        dataset, results = folder / "batch.jsonl", folder / "results"
        make_lines(dataset, given.lines)
        environment = dict(os.environ)
        words = [given.binary, f"--model={MODEL}", "--dataset=jsonl", f"--dataset-path={dataset}", f"--results-dir={results}", "--metrics-port=0"]
        if given.engine == "none":
            python = folder / "bin/python3"
            python.parent.mkdir()
            python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/scripts/bench-batch-engine.py "$@"\n')
            python.chmod(0o755)
            environment["PATH"] = f"{python.parent}:{environment['PATH']}"
            words += ["--backend=vllm", "--max-model-len=8192"]
        else:
            words += ["--max-model-len=512"]
        with (RESULTS / "log").open("w") as log:
            job = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
            began, samples = time.monotonic(), []
            while job.poll() is None:
                samples.append((time.monotonic() - began, memory_bytes(job.pid), answered(results)))
                time.sleep(given.interval)
        if job.returncode:
            sys.exit(f"flashjob ended with {job.returncode}; {RESULTS / 'log'} says why")
        result = json.loads((results / "result.json").read_text())
    with_answers = [sample for sample in samples if sample[2] > 0]
    start, most = with_answers[0][1], max(sample[1] for sample in samples)
    seconds = result["metrics"]["elapsed_time"]
    report = {
        "lines": given.lines,
        "engine": given.engine,
        "batch": result["batch"],
        "seconds": seconds,
        "lines_per_second": given.lines / seconds,
        "memory_bytes_with_first_shard": start,
        "most_memory_bytes": most,
        "samples": samples,
    }
    (RESULTS / "memory.json").write_text(json.dumps(report))
    title = f"{given.lines:,} lines of 1 kB: memory of flashjob's processes"
    (RESULTS / "memory.svg").write_text(svg(samples, title))
    print(f"{given.lines} lines in {seconds:.0f} s, {given.lines / seconds:.0f} lines per second: {json.dumps(result['batch'])}")
    print(f"memory: {start / 1e6:.0f} MB when the first shard was finished, {most / 1e6:.0f} MB at most ({(most - start) / 1e6:.0f} MB more)")
    for part in range(1, 11):
        at, bytes_, lines = samples[len(samples) * part // 10 - 1]
        print(f"  {at:6.0f} s  {bytes_ / 1e6:6.0f} MB  {lines:>10} lines in finished shards")


def make_batch(path: Path, count: int, tokens: int) -> None:
    """An OpenAI batch of conversations."""
    generator = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            text = f"{number}: " + " ".join(generator.choices(WORDS, k=generator.randrange(20, 120)))
            body = {
                "model": "model",
                "messages": [{"role": "user", "content": text}],
                "max_tokens": tokens,
                "temperature": 0,
            }
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def beside_vllm(given: argparse.Namespace) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    threads = os.cpu_count() or 1
    rates = {"flashjob": [], "vllm run-batch": []}
    with tempfile.TemporaryDirectory(prefix="bench-batch-") as folder:
        folder = Path(folder)
        dataset = folder / "batch.jsonl"
        make_batch(dataset, given.lines, given.output_len)
        sides = list(rates)
        for round_ in range(given.rounds):
            for side in sides if round_ % 2 == 0 else reversed(sides):
                results = folder / f"{side.split()[0]}-{round_}"
                if side == "flashjob":
                    words = [given.binary, f"--model={given.model}", "--dataset=jsonl", f"--dataset-path={dataset}"]
                    words += [f"--results-dir={results}", "--metrics-port=0", f"--threads={threads}", "--dtype=bfloat16", "--max-model-len=2048"]
                    environment = dict(os.environ)
                else:
                    words = [str(Path(sys.executable).parent / "vllm"), "run-batch", "-i", str(dataset), "-o", str(results)]
                    words += ["--model", given.model, "--served-model-name", "model", "--dtype", "bfloat16"]
                    words += ["--max-model-len", "2048"]
                    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), VLLM_CPU_OMP_THREADS_BIND="nobind")
                    environment |= {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
                began = time.monotonic()
                with (RESULTS / f"{results.name}.log").open("w") as log:
                    subprocess.run(words, stdout=log, stderr=log, env=environment, check=True)
                seconds = time.monotonic() - began
                answers = results if results.is_file() else results / "outputs/outputs-00000.jsonl"
                good = sum(json.loads(line)["error"] is None for line in answers.read_text().splitlines())
                assert good == given.lines, f"{side} answered {good} of {given.lines} lines"
                rates[side].append(given.lines / seconds)
                print(f"round {round_ + 1}  {side:15} {seconds:7.1f} s  {given.lines / seconds:6.2f} lines per second", flush=True)
    ours, theirs = (statistics.median(rates[side]) for side in rates)
    (RESULTS / "vllm.json").write_text(json.dumps({"lines": given.lines, "rates": rates, "ratio": ours / theirs}))
    print(f"flashjob {ours:.2f}, vllm run-batch {theirs:.2f} lines per second (medians, processes from start to end): {ours / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    memory = modes.add_parser("memory", help="memory over time")
    memory.add_argument("--lines", type=int, default=2_000_000)
    memory.add_argument("--engine", choices=["none", "candle"], default="none")
    memory.add_argument("--interval", type=float, default=1.0, help="seconds between two samples")
    vllm = modes.add_parser("vllm", help="lines per second beside `vllm run-batch`")
    vllm.add_argument("--lines", type=int, default=300)
    vllm.add_argument("--rounds", type=int, default=3)
    vllm.add_argument("--output-len", type=int, default=32)
    vllm.add_argument("--model", required=True, help="a directory in Hugging Face layout, which both read")
    for mode in (memory, vllm):
        mode.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    given = parser.parse_args()
    (measure_memory if given.mode == "memory" else beside_vllm)(given)


main()
