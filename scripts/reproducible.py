"""Makes a saved image the same whenever it is made of the same things: writes what `docker load` takes.

usage: docker save ID >FILE && scripts/reproducible.py FILE TAG SECONDS BASE_LAYERS | docker load

SECONDS (since 1970) becomes the time of every file and of the image itself; files are sorted, and what the builder notes about
itself (its containers, its clock) is left out. The first BASE_LAYERS layers are the base's and stay as they are, for they are the
same as long as the base is. Debian's client has no BuildKit, which could do it.
"""

import hashlib
import io
import json
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

# Of an image's configuration: what it is and does, and nothing of who made it.
KEPT = ["architecture", "os", "variant", "config"]
KEPT_OF_HISTORY = ["created_by", "comment", "empty_layer"]


def rewrite(layer: BinaryIO, path: Path, seconds: int) -> str:
    """Writes `layer` anew to `path` and gives its hash. Layers may be larger than memory."""
    with tarfile.open(fileobj=layer) as source, tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target:
        # A hard link comes after what it links to.
        for member in sorted(source, key=lambda member: (member.islnk(), member.name)):
            member.mtime, member.uname, member.gname, member.pax_headers = seconds, "", "", {}
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add(archive: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, content)


def main() -> None:
    file, tag, seconds, base_layers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with TemporaryDirectory() as place, tarfile.open(file) as saved:
        [manifest] = json.loads(saved.extractfile("manifest.json").read())
        made = json.loads(saved.extractfile(manifest["Config"]).read())
        own = manifest["Layers"][base_layers:]
        paths = [Path(place, str(index)) for index in range(len(own))]
        digests = [digest.removeprefix("sha256:") for digest in made["rootfs"]["diff_ids"][:base_layers]]
        digests += [rewrite(saved.extractfile(name), path, seconds) for name, path in zip(own, paths)]

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

        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            add(archive, "manifest.json", len(entry), io.BytesIO(entry))
            add(archive, name, len(text), io.BytesIO(text))
            written = set()
            for index, layer in enumerate(names):
                # A layer that stands twice is one file.
                if layer in written:
                    continue
                written.add(layer)
                if index < base_layers:
                    # Older Dockers save a layer that stands twice as a link.
                    content = saved.extractfile(manifest["Layers"][index])
                    size = content.seek(0, io.SEEK_END)
                    content.seek(0)
                    add(archive, layer, size, content)
                else:
                    path = paths[index - base_layers]
                    with path.open("rb") as content:
                        add(archive, layer, path.stat().st_size, content)


main()
