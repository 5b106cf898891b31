"""Makes a saved image the same whenever it is made of the same things: on standard input what `docker save` gives, on standard
output what `docker load` takes.

usage: docker save ID | scripts/reproducible.py TAG SECONDS | docker load

SECONDS (since 1970) becomes the time of every file and of the image itself; files are sorted, and what the builder notes about
itself (its containers, its clock) is left out. Debian's client has no BuildKit, which could do it.
"""

import hashlib
import io
import json
import sys
import tarfile
from datetime import UTC, datetime

# Of an image's configuration: what it is and does, and nothing of who made it.
KEPT = ["architecture", "os", "variant", "config"]
KEPT_OF_HISTORY = ["created_by", "comment", "empty_layer"]


def archived(files: list[tuple[tarfile.TarInfo, bytes]], seconds: int) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in sorted(files, key=lambda file: file[0].name):
            member.mtime, member.uname, member.gname, member.pax_headers = seconds, "", "", {}
            archive.addfile(member, io.BytesIO(content))
    return output.getvalue()


def contents(archive: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return [(member, opened.extractfile(member).read() if member.isfile() else b"") for member in opened]


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def main() -> None:
    tag, seconds = sys.argv[1], int(sys.argv[2])
    saved = {member.name: content for member, content in contents(sys.stdin.buffer.read())}
    [manifest] = json.loads(saved["manifest.json"])
    layers = [archived(contents(saved[name]), seconds) for name in manifest["Layers"]]
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    made = json.loads(saved[manifest["Config"]])
    created = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    configuration = {key: made[key] for key in KEPT if made.get(key)}
    # The builder's own container.
    for key in ["Hostname", "Image"]:
        configuration["config"].pop(key, None)
    configuration["created"] = created
    configuration["history"] = [
        {"created": created} | {key: step[key] for key in KEPT_OF_HISTORY if key in step} for step in made["history"]
    ]
    configuration["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]}
    text = json.dumps(configuration, sort_keys=True).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    names = [f"{digest}.tar" for digest in digests]
    entry = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": names}]).encode()
    # A layer that stands twice is one file.
    files = {"manifest.json": entry, name: text} | dict(zip(names, layers))
    sys.stdout.buffer.write(archived([plain(*file) for file in files.items()], seconds))


main()
