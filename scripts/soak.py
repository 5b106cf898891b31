"""Random readers of one mount while the server throttles, resets, stalls, lies and lets through.

Every byte is compared with what the object is known to hold. A read may fail only while faults that do not pass are
switched on, and never with wrong bytes. Resident memory is sampled: its last quarter may not lie above its second.
"""

import argparse
import contextlib
import http.client
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
from pathlib import Path

FILES, SIZE = 12, (64 << 20) + 4097
MASK = (1 << 64) - 1
FACTOR = 0x9E3779B97F4A7C15
PASSING = [
    {"kind": "status", "status": 429, "probability": 0.05},
    {"kind": "status", "status": 503, "retry_after": "1", "probability": 0.02},
    {"kind": "status", "status": 500, "probability": 0.02},
    {"kind": "reset", "after_bytes": 2_000_000, "probability": 0.05},
    {"kind": "short_body", "after_bytes": 3_000_000, "probability": 0.05},
    {"kind": "stall", "after_bytes": 100_000, "probability": 0.01},
    {"kind": "lost_answer", "probability": 0.02},
    # Four answers in a row that make no sense are believed, and fail a read: these are rare enough for that never to happen.
    {"kind": "wrong_content_range", "probability": 0.005},
    {"kind": "wrong_length", "probability": 0.005},
    {"kind": "latency", "seconds": 0.05, "probability": 0.3},
    {"kind": "bandwidth", "bytes_per_second": 50e6, "probability": 0.3},
]
LASTING = [
    {"kind": "status", "status": 401},
    {"kind": "changed_etag", "ignores_if_match": True},
    {"kind": "wrong_content_range"},
]


def expected(seed: int, start: int, length: int) -> bytes:
    """What the development bucket makes up for objects with a seed."""
    first, last = start // 8, (start + length + 7) // 8
    words = b"".join((((word + seed + 1) * FACTOR) & MASK).to_bytes(8, "little") for word in range(first, last))
    return words[start - first * 8 :][:length]


class Soak:
    def __init__(self, address: str, folder: str, seed: int, pause_seconds: float):
        self.address, self.folder, self.seed, self.pause_seconds = address, folder, seed, pause_seconds
        self.lasting, self.stop, self.lock = False, False, threading.Lock()
        self.reads = self.bytes = self.failures = 0
        self.wrong: list[str] = []

    def faults(self, faults: list) -> None:
        for method, body in [("DELETE", None), ("POST", json.dumps(faults))]:
            connection = http.client.HTTPConnection(self.address)
            connection.request(method, "/admin/faults", body)
            connection.getresponse().read()
            connection.close()

    def read(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        position = 0
        while not self.stop:
            time.sleep(self.pause_seconds)
            file = chance.randrange(FILES)
            length = chance.choice([1, 100, 4096, 70_001, 300_000])
            sequential = chance.random() < 0.5
            position = position if sequential and position + length < SIZE else chance.randrange(SIZE - length)
            began_lasting = self.lasting
            try:
                with open(f"{self.folder}/f{file}", "rb", buffering=0) as opened:
                    if chance.random() < 0.3 and not began_lasting:
                        # A fault under mmap is a SIGBUS: only in processes of their own, which `mapped` starts.
                        subprocess.run([sys.executable, __file__, "--mapped", opened.name, str(position), str(length), str(file)],
                                       check=True, stderr=subprocess.DEVNULL)
                        got = None
                    else:
                        got = os.pread(opened.fileno(), length, position)
                        # The page cache is not what is tested.
                        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            except (OSError, subprocess.CalledProcessError) as error:
                with self.lock:
                    self.failures += 1
                    wrong_exit = isinstance(error, subprocess.CalledProcessError) and error.returncode == 9
                    if wrong_exit or not (began_lasting or self.lasting):
                        self.wrong.append(f"reader {number}, f{file} at {position}, {length} bytes: {error}")
                time.sleep(0.05)
                continue
            if got is not None:
                # Where bytes that came meet a fault, read(2) gives those that came.
                right = got == expected(file, position, length)[: len(got)]
                if not right or (len(got) < length and not (began_lasting or self.lasting)):
                    what = f"{len(got)} bytes came" if right else f"{len(got)} bytes came, and are wrong"
                    with self.lock:
                        self.wrong.append(f"reader {number}, f{file} at {position}, {length} bytes: {what}")
            position += length
            with self.lock:
                self.reads, self.bytes = self.reads + 1, self.bytes + length


def mapped(path: str, position: int, length: int, seed: int) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        sys.exit(0 if view[position : position + length] == expected(seed, position, length) else 9)


def resident_mb(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1000


def used_mb(directory: Path) -> float:
    used = 0
    for entry in os.scandir(directory):
        # A file may go while it is counted, and has holes.
        with contextlib.suppress(FileNotFoundError):
            used += entry.stat().st_blocks * 512 if "." in entry.name else 0
    return used / 1e6


def main() -> None:
    if sys.argv[1:2] == ["--mapped"]:
        return mapped(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--pause-ms", type=float, default=0, help="of each reader between reads: leaves processors to others")
    parser.add_argument("--memory-mb", type=int, default=128)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, location, cache = (Path(scratch, name) for name in ["bucket", "mounted", "cache"])
        for directory in folder, location, cache:
            directory.mkdir()
        objects = Path(scratch, "objects.json")
        objects.write_text(json.dumps([{"name": f"f{n}", "size_bytes": SIZE, "seed": n} for n in range(FILES)]))
        server = subprocess.Popen([args.binaries / "development-bucket", folder, "--objects", objects, "--until-stdin-ends",
                                   "--md5-up-to-bytes", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        announced = json.loads(server.stdout.readline())
        mount = subprocess.Popen([args.binaries / "examples/mount_speed", "mount", announced["pars"][0]["url"], location,
                                  f"--memory-mb={args.memory_mb}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 env=os.environ | {"CACHE_DIR": str(cache), "CACHE_MB": "200"})
        assert "ready" in mount.stdout.readline(), "it did not mount"
        soak = Soak(announced["address"], str(location), args.seed, args.pause_ms / 1000)
        readers = [threading.Thread(target=soak.read, args=[number], daemon=True) for number in range(args.readers)]
        chance, memory, cached, start = random.Random(args.seed), [], [], time.monotonic()
        print(f"seed {args.seed}, {args.minutes} minutes, {args.readers} readers, budget {args.memory_mb} MB", flush=True)
        for reader in readers:
            reader.start()
        next_report = start + 60
        while time.monotonic() - start < args.minutes * 60 and not soak.wrong:
            lasting = chance.random() < 0.1
            faults = chance.sample(LASTING, 1) if lasting else chance.sample(PASSING, chance.randrange(len(PASSING)))
            if lasting:
                soak.lasting = True
            soak.faults([fault | {"operation": "get"} for fault in faults])
            time.sleep(chance.uniform(0.5, 5))
            if lasting:
                soak.faults([])
                # Whatever met the fault is over once its tries are.
                time.sleep(5)
                soak.lasting = False
            memory.append(resident_mb(mount.pid))
            cached.append(used_mb(cache / "flashjob-files"))
            if time.monotonic() > next_report:
                next_report += 60
                print(f"{(time.monotonic() - start) / 60:.0f} min: {soak.reads} reads, {soak.bytes / 1e9:.2f} GB, {soak.failures} failed as "
                      f"they should, resident {memory[-1]:.0f} MB, cache {cached[-1]:.0f} MB", flush=True)
        soak.faults([])
        soak.stop = True
        for reader in readers:
            reader.join(timeout=60)
        mount.stdin.close()
        ended = mount.stdout.read().strip().splitlines()
        mount.wait()
        server.stdin.close()
        server.wait()
    quarter = len(memory) // 4
    early, late = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[3 * quarter :])
    print(f"{soak.reads} reads, {soak.bytes / 1e9:.2f} GB, {soak.failures} failed while faults lasted; resident {early:.0f} MB early, "
          f"{late:.0f} MB late, {max(memory):.0f} MB at most; cache {max(cached):.0f} MB at most; {ended[-1:]}")
    assert not soak.wrong, "\n".join(soak.wrong)
    assert late < early * 1.1 + 16, "memory grows"
    print("zero wrong bytes")


if __name__ == "__main__":
    main()
