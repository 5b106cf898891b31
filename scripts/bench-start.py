"""Seconds from the start of a job to its first measured request, by phase: see scripts/bench-start.

The file has the shapes and formats of Qwen2.5-0.5B-Instruct in llama.cpp's Q4_K_M: rows of 896 are no multiple of 256, so that
most of its matrices are Q5_0 and Q8_0. Rounds of both programs are interleaved, and a plain read of the file runs beside them.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import struct
import subprocess
import tempfile
import time

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 24, 896, 14, 2, 64, 4864, 151936
UINT32, FLOAT32, STRING = 4, 6, 8
ALIGNMENT = 32

# GGML's numbers, weights and bytes of a block, and where its scales of half precision are.
F32 = (0, 1, 4, ())
Q5_0 = (6, 32, 22, (0,))
Q8_0 = (8, 32, 34, (0,))
Q4_K = (12, 256, 144, (0, 2))
Q6_K = (14, 256, 210, (208,))

PROMPTS = ["Write a function that reverses a list.", "Explain what a mutex is.", "Sort three numbers without a loop.",
           "What does the borrow checker do?", "Give an example of a regular expression."]


def tensors():
    """Name, columns, rows and format of each tensor."""
    yield "token_embd.weight", WIDTH, VOCABULARY, Q8_0
    for layer in range(LAYERS):
        more_bits = layer < LAYERS // 8 or layer >= 7 * LAYERS // 8
        name = f"blk.{layer}.".__add__
        yield name("attn_norm.weight"), WIDTH, None, F32
        for part, rows, format in ("q", HEADS * HEAD, Q5_0), ("k", KV_HEADS * HEAD, Q5_0), ("v", KV_HEADS * HEAD, Q8_0):
            yield name(f"attn_{part}.weight"), WIDTH, rows, format
            yield name(f"attn_{part}.bias"), rows, None, F32
        yield name("attn_output.weight"), HEADS * HEAD, WIDTH, Q5_0
        yield name("ffn_norm.weight"), WIDTH, None, F32
        yield name("ffn_gate.weight"), WIDTH, INNER, Q5_0
        yield name("ffn_up.weight"), WIDTH, INNER, Q5_0
        yield name("ffn_down.weight"), INNER, WIDTH, Q6_K if more_bits else Q4_K
    yield "output_norm.weight", WIDTH, None, F32


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def vocabulary(path):
    """The bytes of all tokenizer metadata of a GGUF file of version 3, and their number."""
    data = path.read_bytes()
    assert data[:4] == b"GGUF" and struct.unpack_from("<I", data, 4) == (3,), path
    (entries,) = struct.unpack_from("<Q", data, 16)
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def text(at):
        (length,) = struct.unpack_from("<Q", data, at)
        return data[at + 8:at + 8 + length], at + 8 + length

    def skip(kind, at):
        if kind == STRING:
            return text(at)[1]
        if kind != 9:
            return at + sizes[kind]
        of, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if of != STRING:
            return at + sizes[of] * count
        for _ in range(count):
            at = text(at)[1]
        return at

    kept, count, at = [], 0, 24
    for _ in range(entries):
        start = at
        key, at = text(at)
        (kind,) = struct.unpack_from("<I", data, at)
        at = skip(kind, at + 4)
        if key.startswith(b"tokenizer."):
            kept.append(data[start:at])
            count += 1
    return b"".join(kept), count


def write_model(path, vocabulary_path):
    texts, text_count = vocabulary(vocabulary_path)
    numbers = {"block_count": LAYERS, "context_length": 32768, "embedding_length": WIDTH, "feed_forward_length": INNER,
               "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    floats = {"rope.freq_base": 1e6, "attention.layer_norm_rms_epsilon": 1e-6}
    metadata = [string("general.architecture") + struct.pack("<I", STRING) + string("qwen2")]
    metadata += [string(f"qwen2.{key}") + struct.pack("<II", UINT32, value) for key, value in numbers.items()]
    metadata += [string(f"qwen2.{key}") + struct.pack("<If", FLOAT32, value) for key, value in floats.items()]
    infos, offset, all_tensors = [], 0, list(tensors())
    for name, columns, rows, (number, weights, size, _) in all_tensors:
        shape = [columns] if rows is None else [columns, rows]
        infos.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset))
        offset += -(-columns * (rows or 1) // weights * size // ALIGNMENT) * ALIGNMENT
    header = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(metadata) + text_count)
    header += b"".join(metadata) + texts + b"".join(infos)
    noise = random.Random(0)
    with open(path, "wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for name, columns, rows, (_, weights, size, scales) in all_tensors:
            blocks = columns * (rows or 1) // weights
            if not scales:
                value = 1.0 if "norm" in name else 0.0
                data = struct.pack("<f", value) * blocks
            else:
                # Repeated after some thousand blocks: nobody reads them.
                some = min(blocks, 4099)
                block = bytearray(noise.randbytes(some * size))
                for scale in scales:
                    for index in range(some):
                        struct.pack_into("<e", block, index * size + scale, 1e-3)
                data = bytes(block) * (blocks // some) + bytes(block[:blocks % some * size])
            file.write(data + bytes(-len(data) % ALIGNMENT))


def start(program, model, folder, dataset):
    """Seconds by phase up to the first measured request."""
    results = folder / "results"
    done = subprocess.run(
        [program, "--model", model, "--dataset=jsonl", "--dataset-path", dataset, "--output-len=1", "--results-dir", results,
         "--metrics-port=0", "--metrics-linger-seconds=0", "--max-model-len=2048", "--device=cpu"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{program} ended with {done.returncode}:\n{done.stderr}")
    phases = {phase["phase"]: phase["seconds"] for phase in json.loads((results / "result.json").read_text())["phases"]}
    return {name: phases.get(name, 0.0) for name in ("mount", "load", "warm_up")}


def read(model):
    began = time.perf_counter()
    with open(model, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flashjob", type=pathlib.Path, required=True)
    parser.add_argument("--beside", type=pathlib.Path, help="another flashjob that runs beside it, such as an older one")
    parser.add_argument("--vocabulary", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    programs = [program for program in (arguments.flashjob, arguments.beside) if program]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model, dataset = folder / "qwen2.gguf", folder / "prompts.jsonl"
        write_model(model, arguments.vocabulary)
        dataset.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        print(f"{os.path.getsize(model) / 1e6:.0f} MB, {os.cpu_count()} processors; medians of {arguments.rounds} rounds")
        rounds = {program: [] for program in programs}
        reads = []
        for _ in range(arguments.rounds):
            reads.append(read(model))
            for program in programs:
                rounds[program].append(start(program, model, folder, dataset))
        plain = statistics.median(reads)
        print(f"a plain read of the file: {plain:.2f} s")
        totals = []
        for program in programs:
            phases = {name: statistics.median(run[name] for run in rounds[program]) for name in rounds[program][0]}
            totals.append(statistics.median(sum(run.values()) for run in rounds[program]))
            shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items())
            print(f"{program}: {totals[-1]:.2f} s to the first request ({shown}), {totals[-1] / plain:.1f} times the read")
        if arguments.beside:
            print(f"ratio {totals[0] / totals[1]:.2f}")


if __name__ == "__main__":
    main()
