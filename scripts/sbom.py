"""What a binary of flashjob is made of: a CycloneDX document, and the list of crates that goes into the binary itself.

usage: scripts/sbom.py BINARY TRIPLE FEATURES SBOM [SECTION]

Follows `cargo tree` from the package `flashjob` along normal dependencies. Procedural macros and what only they, build scripts and
tests need is not in the binary, and not in the documents. SECTION takes the list in the format of cargo-auditable
(zlib over JSON, ELF section `.dep-v0`), which `cargo audit bin` and other scanners read. The same Cargo.lock gives the same bytes.
"""

import json
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

ROOT = Path(__file__).resolve().parent.parent

SOURCE_FILE = re.compile(rb"/registry/src/[^/\0]+/([A-Za-z0-9_-]+?)-(\d+\.\d+\.\d+[0-9A-Za-z.+-]*)")

# Name and version.
Crate = tuple[str, str]


def cargo(*arguments: str) -> str:
    command = ["cargo", *arguments, "--locked", "--offline"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def add_tree(needed: dict[Crate, set[Crate]], triple: str, features: str, root: str, edges: str = "normal") -> None:
    """Adds `root` and what it needs. `cargo tree` resolves features as a build does; the resolution in `cargo metadata` has crates
    that no build would take."""
    asked = ["--edges", f"{edges},no-proc-macro", "--target", triple, "--features", features, "--package", root]
    above: list[Crate] = []
    for line in cargo("tree", *asked, "--prefix", "depth", "--format", " {p}").splitlines():
        depth, name, version, *_ = line.split()
        crate = (name, version.removeprefix("v"))
        del above[int(depth) :]
        needed.setdefault(crate, set())
        if above:
            needed[above[-1]].add(crate)
        above.append(crate)


def in_the_binary(triple: str, features: str, binary: Path) -> dict[Crate, set[Crate]]:
    """Every crate and those that it needs, the root first."""
    needed: dict[Crate, set[Crate]] = {}
    add_tree(needed, triple, features, "flashjob")
    # A binary that was built beside the tests has the features that tests enable, and the crates behind these. Every crate
    # that can panic, or has debug information, names its files.
    for name, version in sorted(set(SOURCE_FILE.findall(binary.read_bytes()))):
        crate = (name.decode(), version.decode())
        if crate not in needed:
            add_tree(needed, triple, "", "@".join(crate), edges="normal,dev")
            needed[next(iter(needed))].add(crate)
    return needed


def reference(crate: Crate) -> str:
    name, version = crate
    return f"pkg:cargo/{name}@{version}"


def component(crate: Crate, kind: str, licences: dict[Crate, str], checksums: dict[Crate, str]) -> dict:
    name, version = crate
    described = {"type": kind, "bom-ref": reference(crate), "name": name, "version": version, "purl": reference(crate)}
    if licences.get(crate):
        # Older crates write `A/B` where SPDX has `A OR B`.
        described["licenses"] = [{"expression": " OR ".join(part.strip() for part in licences[crate].split("/"))}]
    if checksums.get(crate):
        described["hashes"] = [{"alg": "SHA-256", "content": checksums[crate]}]
    return described


def cyclonedx(needed: dict[Crate, set[Crate]], licences: dict[Crate, str], checksums: dict[Crate, str]) -> dict:
    root, *others = needed
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root, "application", licences, checksums)},
        "components": [component(crate, "library", licences, checksums) for crate in sorted(others)],
        "dependencies": [
            {"ref": reference(crate), "dependsOn": [reference(other) for other in sorted(needed[crate])]}
            for crate in sorted(needed)
        ],
    }
    # Named by what it says: a random number would make every document another one.
    document["serialNumber"] = f"urn:uuid:{uuid5(NAMESPACE_URL, json.dumps(document))}"
    return document


def auditable(needed: dict[Crate, set[Crate]], checksums: dict[Crate, str]) -> bytes:
    root, ordered = next(iter(needed)), sorted(needed)

    def entry(crate: Crate) -> dict:
        name, version = crate
        described = {"name": name, "version": version, "source": "crates.io" if checksums.get(crate) else "local"}
        if needed[crate]:
            described["dependencies"] = sorted(ordered.index(other) for other in needed[crate])
        if crate == root:
            described["root"] = True
        return described

    text = json.dumps({"packages": [entry(crate) for crate in ordered]}, separators=(",", ":"))
    return zlib.compress(text.encode(), 9)


def main() -> None:
    binary, triple, features, sbom, *section = sys.argv[1:]
    needed = in_the_binary(triple, features, Path(binary))
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(entry["name"], entry["version"]): entry.get("checksum", "") for entry in locked}
    packages = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", triple))["packages"]
    licences = {(package["name"], package["version"]): package["license"] for package in packages}
    Path(sbom).write_text(json.dumps(cyclonedx(needed, licences, checksums), indent=1) + "\n")
    for path in section:
        Path(path).write_bytes(auditable(needed, checksums))


main()
