"""The mount's speed, in ratios: rounds of all ways interleaved, medians, each server and reader in a process of its own.

Straight is the same client without a file system: as many connections, ranges of one block, each into memory that is used again. The
server (`development-bucket`) shares the processors with everybody else, as no bucket does: it has its objects in memory so as to cost
least, and still the loopback figures of a machine of few cores are those of the server and the reader together.

Before each way memory is touched, as much as any way takes: where the machine is a virtual one, its host takes memory back that is
free, and whoever needs it next pays for having it mapped again: 2 s a GiB were seen, several times the cost of the read itself.
"""

import argparse
import contextlib
import ctypes
import http.client
import http.server
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

GIB = 1 << 30
# A file in the page cache, one in a disk cache, blocks, and what readers and servers have.
TOUCHED_BYTES = 3 * GIB
NETWORKS = {
    "loopback": [],
    "30 ms, 100 MB/s each": [
        {"kind": "latency", "seconds": 0.03, "operation": "get"},
        {"kind": "bandwidth", "bytes_per_second": 100e6, "operation": "get"},
    ],
}
GIGABIT = [
    {"kind": "latency", "seconds": 0.03, "operation": "get"},
    {"kind": "shared_bandwidth", "bytes_per_second": 125e6, "operation": "get"},
]
# Llama's shape at 1.1 GB in 16 bits; the tokenizer is a fixture's, whose few tokens fit into any vocabulary.
MODEL = dict(hidden=2048, intermediate=8192, layers=8, heads=32, kv_heads=8, vocabulary=32000)


class Server:
    """A development bucket of `folder`."""

    def __init__(self, binary: Path, folder: str, objects: list):
        listing = Path(folder).parent / f"{Path(folder).name}.json"
        listing.write_text(json.dumps(objects))
        command = [binary, folder, "--md5-up-to-bytes", "0", "--until-stdin-ends", "--in-memory", "--objects", listing]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        announced = json.loads(self.process.stdout.readline())
        self.address, self.url = announced["address"], announced["pars"][0]["url"]

    def network(self, faults: list) -> None:
        for method, body in [("DELETE", None), ("POST", json.dumps(faults))]:
            connection = http.client.HTTPConnection(self.address)
            connection.request(method, "/admin/faults", body)
            assert connection.getresponse().read() is not None
            connection.close()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def run(command: list) -> dict:
    """The last line that a reader of its own process prints."""
    touch_memory()
    finished = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.strip().splitlines()[-1])


@contextlib.contextmanager
def held(command: list, figures: dict, **environment: str):
    """A mount of its own process; what it says at its end lands in `figures`."""
    touch_memory()
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | environment)
    try:
        line = process.stdout.readline()
        assert "ready" in line, f"{command} did not mount: {line}"
        yield
    finally:
        process.stdin.close()
        rest = process.stdout.read().strip().splitlines()
        process.wait()
        if rest:
            figures.update(json.loads(rest[-1]))


@contextlib.contextmanager
def rclone(url: str, name: str, location: str, options: list):
    """rclone's http backend over an index page that sends each read to the server."""

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.rstrip("/") == "":
                page = f'<html><body><a href="{name}">{name}</a></body></html>'.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
            else:
                self.send_response(307)
                self.send_header("Location", url + urllib.parse.quote(name))
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    index = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=index.serve_forever, daemon=True).start()
    touch_memory()
    cache = tempfile.mkdtemp()
    environment = os.environ | {"RCLONE_CONFIG": "/dev/null", "XDG_CACHE_HOME": cache}
    at = f":http,url='http://127.0.0.1:{index.server_port}/':"
    process = subprocess.Popen(["rclone", "mount", at, location, "--read-only", *options], env=environment)
    try:
        deadline = time.monotonic() + 20
        while not os.path.ismount(location):
            assert process.poll() is None and time.monotonic() < deadline, "rclone did not mount"
            time.sleep(0.02)
        yield
    finally:
        subprocess.run(["fusermount3", "-uz", location], check=False, stderr=subprocess.DEVNULL)
        process.terminate()
        process.wait()
        index.shutdown()
        subprocess.run(["rm", "-rf", cache], check=True)


RCLONE = {
    "rclone": [],
    "rclone, tuned": ["--buffer-size=128M", "--vfs-read-chunk-size=128M", "--max-read-ahead=1M", "--attr-timeout=1h",
                      "--dir-cache-time=1h", "--no-modtime", "--vfs-read-wait=5ms"],
}


def read_whole(path: str) -> int:
    buffer = bytearray(4 << 20)
    with open(path, "rb", buffering=0) as file:
        total = 0
        while count := file.readinto(buffer):
            total += count
    return total


def read_mapped(path: str) -> int:
    target = bytearray(4 << 20)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for offset in range(0, len(mapped), len(target)):
            piece = min(len(target), len(mapped) - offset)
            with memoryview(mapped) as view:
                target[:piece] = view[offset : offset + piece]
        return len(mapped)


def read_safetensors(path: str) -> int:
    total = 0
    with safe_open(path, framework="np") as file:
        for name in file.keys():
            total += file.get_tensor(name).nbytes
    return total


READERS = {"read": read_whole, "mmap": read_mapped, "safetensors": read_safetensors}


def touch_memory() -> None:
    """Has free memory mapped by whoever lends it, in a process of its own that ends at once."""
    subprocess.run([sys.executable, __file__, "--touch"], check=True)


def reader_process(how: str, path: str) -> float:
    """MB/s of a reader in its own process, from open to close."""
    return float(subprocess.run([sys.executable, __file__, "--reader", how, path], stdout=subprocess.PIPE, text=True,
                                check=True).stdout)


def rate(figures: dict) -> float:
    return figures["bytes"] / figures["seconds"] / 1e6


def table(title: str, rates: dict[str, list[float]], beside: str, notes: dict[str, str] = {}) -> None:
    print(f"\n{title}")
    base = statistics.median(rates[beside])
    for way, taken in rates.items():
        if taken:
            median = statistics.median(taken)
            each = " ".join(f"{one:.0f}" for one in taken)
            print(f"  {way:<28}{median:8.0f} MB/s{median / base:6.2f} of {beside}   ({each}) {notes.get(way, '')}", flush=True)


def write_safetensors(path: Path, tensors: dict[str, list[int]], dtype: str = "BF16") -> None:
    """Tensors of 16-bit numbers, small if bfloat16, in the order of their names, as they are saved."""
    header, offset = {}, 0
    for name in sorted(tensors):
        size = 2
        for length in tensors[name]:
            size *= length
        header[name] = {"dtype": dtype, "shape": tensors[name], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = random.Random(0)
    # 1 MiB of bfloat16 between 0.004 and 0.03, of either sign.
    block = b"".join(bytes([numbers.randrange(256), numbers.choice([0x3B, 0x3C, 0xBB, 0xBC])]) for _ in range(1 << 19))
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while offset > 0:
            file.write(block[: min(offset, len(block))])
            offset -= len(block)


def write_model(folder: Path, tokenizer: Path) -> int:
    """A Llama of random numbers in `folder`; gives its bytes."""
    folder.mkdir(parents=True)
    hidden, intermediate, kv = MODEL["hidden"], MODEL["intermediate"], MODEL["hidden"] // MODEL["heads"] * MODEL["kv_heads"]
    tensors = {"model.embed_tokens.weight": [MODEL["vocabulary"], hidden], "model.norm.weight": [hidden]}
    for layer in range(MODEL["layers"]):
        for name, shape in {
            "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [intermediate, hidden],
            "mlp.up_proj": [intermediate, hidden], "mlp.down_proj": [hidden, intermediate],
        }.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "tie_word_embeddings": True,
        "intermediate_size": intermediate, "num_hidden_layers": MODEL["layers"], "num_attention_heads": MODEL["heads"],
        "num_key_value_heads": MODEL["kv_heads"], "vocab_size": MODEL["vocabulary"], "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "hidden_act": "silu", "torch_dtype": "bfloat16", "eos_token_id": 1,
        "bos_token_id": 0, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
    }))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return (folder / "model.safetensors").stat().st_size


def sequential(args, scratch: Path) -> None:
    speed, location = args.binaries / "examples/mount_speed", scratch / "mounted"
    location.mkdir()
    (scratch / "one").mkdir()
    server = Server(args.binaries / "development-bucket", str(scratch / "one"), [{"name": "weights", "size_bytes": GIB, "seed": 1}])
    path, local = str(location / "weights"), scratch / "local"
    local.write_bytes(bytes(64 << 20) * 16)
    connections = f"--connections={args.connections}"
    for network, faults in NETWORKS.items():
        server.network(faults)
        rates, spent = {}, {}
        note = lambda way, value, seconds=None: (
            rates.setdefault(way, []).append(value), spent.setdefault(way, []).append(seconds) if seconds else None)
        for _ in range(args.rounds):
            figures = run([speed, "straight", server.url, connections])
            note("straight", rate(figures), figures["cpu_seconds"])
            for way, how in [("FUSE read", "read"), ("FUSE mmap", "mmap")]:
                figures = {}
                with held([speed, "mount", server.url, location, connections], figures):
                    value = reader_process(how, path)
                    if how == "read":
                        note("second read", reader_process(how, path))
                note(way, value, figures["cpu_seconds"])
            figures = run([speed, "direct", server.url, connections])
            note("block map", rate(figures), figures["cpu_seconds"])
            # Read once into a disk cache, then by another process that fetches nothing.
            with tempfile.TemporaryDirectory(dir=scratch) as cache:
                for way in ["FUSE read, filling a cache", "FUSE read, disk cache"]:
                    figures = {}
                    with held([speed, "mount", server.url, location, connections], figures, CACHE_DIR=cache):
                        value = reader_process("read", path)
                    note(way, value, figures["cpu_seconds"])
            if not faults:
                figures = {}
                with held([speed, "memory", location, GIB], figures):
                    value = reader_process("read", path)
                note("FUSE file in memory", value, figures["cpu_seconds"])
                note("local file", reader_process("read", str(local)))
            for way, options in RCLONE.items():
                with rclone(server.url, "weights", str(location), options):
                    note(way, reader_process("read", path))
        cpu = {way: f"{statistics.median(taken):.2f} CPU s/GiB" for way, taken in spent.items() if taken}
        table(f"1 GiB in sequence, {network}, {args.connections} connections", rates, "straight", cpu)
        if not faults:
            share = statistics.median(rates["FUSE read"]) / statistics.median(rates["FUSE file in memory"])
            print(f"  FUSE read is {share:.2f} of a FUSE file in memory")
    server.close()


def safetensors(args, scratch: Path) -> None:
    speed, location = args.binaries / "examples/mount_speed", scratch / "mounted-safetensors"
    location.mkdir()
    (scratch / "tensors").mkdir()
    write_safetensors(scratch / "tensors/model.safetensors", {f"layer.{n}": [4096, 2048] for n in range(32)}, "F16")  # numpy has no bfloat16
    server = Server(args.binaries / "development-bucket", str(scratch / "tensors"), [])
    path, connections = str(location / "model.safetensors"), f"--connections={args.connections}"
    for network, faults in NETWORKS.items():
        server.network(faults)
        rates = {}
        note = lambda way, value: rates.setdefault(way, []).append(value)
        for _ in range(args.rounds):
            note("straight", rate(run([speed, "straight", server.url, connections])))
            for way, how in [("FUSE read", "read"), ("FUSE mmap", "mmap"), ("FUSE safe_open", "safetensors")]:
                with held([speed, "mount", server.url, location, connections], {}):
                    note(way, reader_process(how, path))
            note("local safe_open", reader_process("safetensors", str(scratch / "tensors/model.safetensors")))
            with rclone(server.url, "model.safetensors", str(location), RCLONE["rclone, tuned"]):
                note("rclone, tuned, safe_open", reader_process("safetensors", path))
        table(f"0.5 GiB of safetensors, {network}, {args.connections} connections", rates, "FUSE read")
    server.close()


def listing(args, scratch: Path) -> None:
    speed, location = args.binaries / "examples/mount_speed", scratch / "mounted-many"
    location.mkdir()
    (scratch / "many").mkdir()
    objects = [{"name": f"org-{n % 10}/model-{n % 500}/shard-{n:06}.safetensors", "size_bytes": n, "seed": n} for n in range(100_000)]
    server = Server(args.binaries / "development-bucket", str(scratch / "many"), objects)
    for _ in range(args.rounds):
        start = time.monotonic()
        parts = urllib.parse.urlsplit(server.url)
        connection, next_start = http.client.HTTPConnection(parts.netloc), ""
        while next_start is not None:
            query = {"fields": "name,size,etag,timeModified,md5", "limit": 1000} | ({"start": next_start} if next_start else {})
            connection.request("GET", f"{parts.path}?{urllib.parse.urlencode(query)}")
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            found = body.rfind(b'"nextStartWith":"')
            next_start = json.loads(body[found + 16 : body.find(b'"', found + 17) + 1]) if found >= 0 else None
        alone = time.monotonic() - start
        figures = run([speed, "list", server.url])
        ours = figures["list_seconds"] + figures["index_seconds"]
        with held([speed, "mount", server.url, location], {}):
            start = time.monotonic()
            shown = subprocess.run(["ls", "-lR", location], stdout=subprocess.PIPE, check=True).stdout.count(b".safetensors\n")
            took = time.monotonic() - start
        print(f"\n100,000 objects: listed and indexed in {ours:.2f} s, of which the server alone takes {alone:.2f} s (fetched "
              f"without parsing); index {figures['index_bytes'] / 1e6:.1f} MB; ls -lR shows {shown} in {took:.2f} s", flush=True)
    server.close()


def memory(args, scratch: Path) -> None:
    speed, location = args.binaries / "examples/mount_speed", scratch / "mounted-memory"
    location.mkdir()
    (scratch / "sixteen").mkdir()
    objects = [{"name": f"weights-{n}", "size_bytes": GIB // 8, "seed": n} for n in range(16)]
    server = Server(args.binaries / "development-bucket", str(scratch / "sixteen"), objects)
    figures = {}
    with held([speed, "mount", server.url, location, "--memory-mb=256"], figures):
        start = time.monotonic()
        readers = [subprocess.Popen([sys.executable, __file__, "--reader", ["read", "mmap"][n % 2], str(location / f"weights-{n % 16}")],
                                    stdout=subprocess.DEVNULL) for n in range(64)]
        assert all(reader.wait() == 0 for reader in readers)
        took = time.monotonic() - start
    print(f"\n64 readers of 16 files of 128 MiB, budget 256 MB: blocks took {figures['peak_block_bytes'] / 1e6:.0f} MB at most, "
          f"{64 * GIB / 8 / took / 1e6:.0f} MB/s in all, fault: {figures['fault']}", flush=True)
    server.close()


def job(binary: Path, url: str, location: Path, scratch: Path, mode: str) -> dict:
    """A whole job of one token."""
    touch_memory()
    results = tempfile.mkdtemp(dir=scratch)
    command = [binary, f"--par={url}", f"--mount-location={location}", f"--mount-mode={mode}", "--model=m", "--num-prompts=1",
               "--input-len=8", "--output-len=1", "--metrics-port=0", "--metrics-linger-seconds=0", f"--results-dir={results}/out",
               "--max-model-len=64", "--warmup=0", "--measure-limits=false", "--kv-cache-memory=64MiB"]
    start = time.monotonic()
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    result = json.loads(Path(results, "out/result.json").read_text())
    phases = {phase["phase"]: phase["seconds"] for phase in result["phases"]} if isinstance(result["phases"], list) else result["phases"]
    return {"seconds": seconds, "phases": phases}


def engine(args, scratch: Path) -> None:
    speed = args.binaries / "examples/mount_speed"
    root = Path(__file__).resolve().parent.parent
    (scratch / "model").mkdir()
    size = write_model(scratch / "model/m", root / "tests/golden/llama-gqa/tokenizer.json")
    server = Server(args.binaries / "development-bucket", str(scratch / "model"), [])
    networks = NETWORKS | {"1 Gbit/s": GIGABIT}
    for network, faults in networks.items():
        server.network(faults)
        rates, totals = {}, {}
        for _ in range(args.rounds):
            straight = run([speed, "straight", server.url, "--connections=32"])
            rates.setdefault("straight", []).append(rate(straight))
            for mode in ["fuse", "copy"]:
                location = scratch / f"job-{mode}"
                figures = job(args.binaries / "flashjob", server.url, location, scratch, mode)
                subprocess.run(["rm", "-rf", str(location)], check=True)
                totals.setdefault(mode, []).append(figures["seconds"])
                if mode == "fuse":
                    rates.setdefault("engine loads", []).append(size / figures["phases"]["load"] / 1e6)
        table(f"{size / 1e9:.2f} GB of weights into our engine, {network}", rates, "straight")
        fuse, copy = statistics.median(totals["fuse"]), statistics.median(totals["copy"])
        print(f"  process start to its end after one token: {fuse:.2f} s from the mount, {copy:.2f} s with a copy first"
              + (f"; {fuse / (size / 125e6):.2f} of the wire time" if network == "1 Gbit/s" else ""), flush=True)
    server.close()


PARTS = {"sequential": sequential, "safetensors": safetensors, "listing": listing, "memory": memory, "engine": engine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=Path, help="where flashjob and its tools are built")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is taken")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part of it; may be repeated")
    parser.add_argument("--reader", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--touch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        how, path = args.reader
        if how == "safetensors":
            # Before the clock starts: what Python takes to import numpy is nobody's reading.
            global safe_open
            from safetensors.numpy import safe_open
        start = time.monotonic()
        size = READERS[how](path)
        print(size / (time.monotonic() - start) / 1e6)
        return
    if args.touch:
        touched = mmap.mmap(-1, TOUCHED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Small pages are found among those that were never given back.
        touched.madvise(mmap.MADV_HUGEPAGE)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(touched)), 1, TOUCHED_BYTES)
        os._exit(0)
    print(f"{args.rounds} rounds, interleaved; load average {os.getloadavg()[0]:.2f}; {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only or PARTS:
            PARTS[name](args, Path(scratch))


if __name__ == "__main__":
    main()
