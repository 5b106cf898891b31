"""Lets torch from PyPI be imported on a machine without CUDA's libraries, which are 3 GB that a CPU has no use for.

usage: PYTHON scripts/without-cuda.py    (the Python of the environment that torch is in)

Puts libraries of CUDA's names beside torch's own, with every function that torch wants of them. Each says that there is no device,
which is what torch finds out first; none is ever called after that. Needs gcc and nm.
"""

import importlib.util
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

# cudaErrorNoDevice, and an error to all others.
NO_DEVICE = 100

# Which library has functions whose version does not say so.
BY_PREFIX = {
    "cusparseLt": "libcusparseLt.so.0",
    "cuFile": "libcufile.so.0",
    "nccl": "libnccl.so.2",
    "pnccl": "libnccl.so.2",
    "nvshmem": "libnvshmem_host.so.3",
    "cu": "libcuda.so.1",
}


def symbols(library: Path, which: str) -> list[str]:
    listed = subprocess.run(["nm", "--dynamic", which, library], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [line.split()[-1] for line in listed.splitlines()]


def needed(library: Path) -> list[str]:
    listed = subprocess.run(["readelf", "--dynamic", "--wide", library], check=True, stdout=subprocess.PIPE, text=True)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", listed.stdout)


def main() -> None:
    folder = Path(importlib.util.find_spec("torch").submodule_search_locations[0]) / "lib"
    own = sorted(path for path in folder.glob("lib*.so*") if not path.is_symlink())
    wanted = {name for library in own for name in needed(library)}
    missing = {name for name in wanted if name.startswith(("libcu", "libnv", "libnccl"))} - {path.name for path in own}
    defined = {symbol.partition("@")[0] for library in own for symbol in symbols(library, "--defined-only")}
    functions: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for symbol in {symbol for library in own for symbol in symbols(library, "--undefined-only")}:
        name, _, version = symbol.partition("@")
        if name in defined:
            continue
        by_prefix = next((library for prefix, library in BY_PREFIX.items() if name.startswith(prefix)), None)
        library = version if version in missing else by_prefix
        if library in missing:
            functions[library][version].add(name)
    with tempfile.TemporaryDirectory() as place:
        source, versions = Path(place) / "stub.c", Path(place) / "versions"
        for library in missing:
            names = {name for names in functions[library].values() for name in names}
            source.write_text("".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(names)))
            versions.write_text(
                "".join(
                    f"{version} {{ {' '.join(f'{name};' for name in sorted(names))} }};\n"
                    for version, names in functions[library].items()
                    if version
                )
            )
            command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}", "-o", folder / library, source]
            if versions.read_text():
                command.append(f"-Wl,--version-script={versions}")
            subprocess.run(command, check=True)


main()
