#!/usr/bin/env python3
"""Makes static libraries that stand before CUDA's shared ones, so that one binary starts with and without a driver.

usage: scripts/cuda-trampolines.py FOLDER [UNKNOWN.c]        (scripts/cuda-toolchain does; needs gcc, ar and cargo)

For each function that cudarc declares, lib<name>.a has one that opens the real library when it is first called and jumps on
to it from then on. Where there is no library, or no such function in it, the call returns the library's own code for that.
x86-64 Linux only.

UNKNOWN.c gets a weak function of each name that ends the program and says so: for a library that stands in for the real ones
and has a few of them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

# By cudarc's module: the library's name, the files to open, and what a call returns where there is none.
LIBRARIES = {
    "driver": ("cuda", ["libcuda.so.1"], 100),  # CUDA_ERROR_NO_DEVICE
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12"], 11),  # NVRTC_ERROR_INTERNAL_ERROR
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so.12"], 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    "cublaslt": ("cublasLt", ["libcublasLt.so.13", "libcublasLt.so.12"], 1),
    "curand": ("curand", ["libcurand.so.10"], 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    "nccl": ("nccl", ["libnccl.so.2"], 2),  # ncclSystemError
}

# The registers that may carry arguments (System V ABI).
INTEGERS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"]
VECTORS = range(8)

FIND = """
#include <dlfcn.h>
#include <stddef.h>

extern void *targets[] __attribute__((visibility("hidden")));

static const char *const names[] = {%(names)s};
static const char *const files[] = {%(files)s, NULL};

static long missing(void) { return %(code)d; }
static const char *missing_text(void) { return "lib%(library)s is not installed"; }

/* Two threads that come first at once find the same. */
__attribute__((visibility("hidden"))) void *find(unsigned index) {
    static void *volatile library;
    for (int i = 0; library == NULL && files[i] != NULL; i++) library = dlopen(files[i], RTLD_NOW | RTLD_GLOBAL);
    void *found = library == NULL ? NULL : dlsym(library, names[index]);
    if (found == NULL) found = %(returns_text)s ? (void *)missing_text : (void *)missing;
    targets[index] = found;
    return found;
}
"""


def cudarc() -> Path:
    """Where cargo keeps the sources of the version that is locked."""
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--locked", "--all-features"], check=True, stdout=subprocess.PIPE
    )
    packages = json.loads(metadata.stdout)["packages"]
    return next(Path(package["manifest_path"]).parent for package in packages if package["name"] == "cudarc")


def assembly(functions: list[str]) -> str:
    lines = [".text"]
    for index, function in enumerate(functions):
        lines += [
            f".globl {function}",
            f".type {function}, @function",
            f"{function}:",
            "    endbr64",
            f"    movq targets + {8 * index}(%rip), %rax",
            "    testq %rax, %rax",
            "    jz 1f",
            "    jmp *%rax",
            f"1:  movl ${index}, %eax",
            "    jmp first_call",
            f".size {function}, . - {function}",
        ]
    # Arguments survive the search. On entry the stack is 8 bytes off a multiple of 16; seven pushes make it even.
    lines += ["first_call:", "    pushq %rbp", "    movq %rsp, %rbp"]
    lines += [f"    pushq %{register}" for register in INTEGERS]
    lines += [f"    subq ${16 * len(VECTORS)}, %rsp"]
    lines += [f"    movups %xmm{i}, {16 * i}(%rsp)" for i in VECTORS]
    lines += ["    movl %eax, %edi", "    call find"]
    lines += [f"    movups {16 * i}(%rsp), %xmm{i}" for i in VECTORS]
    lines += [f"    addq ${16 * len(VECTORS)}, %rsp"]
    lines += [f"    popq %{register}" for register in reversed(INTEGERS)]
    lines += ["    popq %rbp", "    jmp *%rax"]
    lines += [".bss", ".balign 8", ".globl targets", ".hidden targets", "targets:", f"    .zero {8 * len(functions)}"]
    lines += ['.section .note.GNU-stack, "", @progbits']
    return "\n".join(lines) + "\n"


def declared(sources: Path, module: str) -> list[str]:
    """The functions of a library."""
    names = re.findall(r"^pub unsafe fn (\w+)", (sources / f"src/{module}/sys/mod.rs").read_text(), re.MULTILINE)
    # Those are cudarc's own.
    return sorted(set(names) - {"culib", "is_culib_present"})


def make(folder: Path, functions: list[str], module: str) -> None:
    library, files, code = LIBRARIES[module]
    # Functions that return text whatever happens; the driver's give it through a pointer.
    texts = [f"index == {i}" for i, name in enumerate(functions) if re.search("(Error|Status)(String|Name)$", name)]
    texts = texts if module != "driver" else []
    quoted = lambda words: ", ".join(f'"{word}"' for word in words)  # noqa: E731
    find = FIND % {
        "names": quoted(functions),
        "files": quoted(files),
        "code": code,
        "library": library,
        "returns_text": f"({' || '.join(texts)})" if texts else "0",
    }
    objects = []
    # One object for each library: hidden names are then its own, also where several are linked into one program.
    for suffix, text in [("S", assembly(functions)), ("c", find)]:
        source = folder / f"{library}.{suffix}"
        source.write_text(text)
        objects.append(folder / f"{library}-{suffix}.o")
        subprocess.run(["gcc", "-O2", "-fPIC", "-c", source, "-o", objects[-1]], check=True)
    whole = folder / f"{library}.o"
    subprocess.run(["ld", "-r", "-o", whole, *objects], check=True)
    for local in ["find", "targets", "first_call"]:
        subprocess.run(["objcopy", f"--localize-symbol={local}", whole], check=True)
    archive = folder / f"lib{library}.a"
    archive.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", archive, whole], check=True)
    print(f"lib{library}.a: {len(functions)} functions")


def unknown(functions: list[str]) -> str:
    lines = ["#include <stdio.h>", "#include <stdlib.h>"]
    for name in functions:
        lines += [
            f"__attribute__((weak, visibility(\"default\"))) int {name}(void) {{",
            f'    fprintf(stderr, "the stand-in driver does not know {name}\\n");',
            "    abort();",
            "}",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sources = cudarc()
    functions = {module: declared(sources, module) for module in LIBRARIES}
    for module in LIBRARIES:
        make(folder, functions[module], module)
    if len(sys.argv) == 3:
        Path(sys.argv[2]).write_text(unknown(sorted({name for names in functions.values() for name in names})))


if __name__ == "__main__":
    main()
