"""The files that a dataset's folder publishes: which they are, one hash of them, and what Kaggle would do to them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kaggle_kit.platform import rules
from kaggle_kit.platform.leaks import find_leaks
from kaggle_kit.platform.rules import DATASET_METADATA

STATE_FILE = ".kaggle-kit-published.json"  # this kit's own note in the folder; never uploaded
_LEFT_OUT_FOLDERS = {"__pycache__", ".git", ".cache", ".huggingface", ".ipynb_checkpoints"}
_LEFT_OUT_FILES = {".DS_Store", "Thumbs.db", STATE_FILE}
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A folder's files that would go to Kaggle.

    Attributes:
        files: {name in the folder, with `/`: path on this machine}, sorted by name; links are followed.
        size_bytes: Of all files.
        problems: Lines on what Kaggle would change, or what must not go.
    """

    files: Mapping[str, Path]
    size_bytes: int
    problems: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of all names and bytes; the metadata is not among them."""
        digest = hashlib.sha256()
        for name, path in self.files.items():
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()[:16]


def read_contents(folder: Path) -> Contents:
    """Return the files of a dataset's folder, and every problem of them; each file is read once, for secrets."""
    problems: list[str] = []
    files = dict(sorted(_walk(folder, folder, problems.append)))
    if not files and not problems:
        problems.append(f"{folder} holds no file beside {DATASET_METADATA}; put in what the dataset is to hold")
    problems += [problem for name in files for problem in _name_problems(name)]
    problems += [str(leak) for leak in find_leaks(files)]
    size = sum(path.stat().st_size for path in files.values())
    return Contents(files=files, size_bytes=size, problems=tuple(problems))


def _walk(folder: Path, top: Path, report: Callable[[str], None]) -> Iterator[tuple[str, Path]]:
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(top).as_posix()
        if entry.is_symlink() and not entry.resolve().is_relative_to(top.resolve()):
            report(f"{name} is a link out of the folder; put the file itself in its place")
        elif entry.is_symlink() and not entry.exists():
            report(f"{name} is a link to nothing; take it out")
        elif entry.is_dir():
            if entry.is_symlink():
                report(f"{name} is a link to a folder; put the folder itself in its place")
            elif entry.name not in _LEFT_OUT_FOLDERS:
                yield from _walk(entry, top, report)
        elif not entry.is_file():
            report(f"{name} is no file; take it out")
        elif entry.name not in _LEFT_OUT_FILES and name != DATASET_METADATA:
            yield name, entry


def _name_problems(name: str) -> Iterator[str]:
    path = PurePosixPath(name)
    lower = path.name.lower()
    unpacked = next((suffix for suffix in rules.UNPACKED if lower.endswith(suffix)), None)
    if unpacked:
        yield f"{name}: Kaggle unpacks a {unpacked}; unpack it into a folder, or make a .whl of a source distribution"
    if path.suffix.lower() in rules.EXPLODED:
        yield f"{name}: Kaggle may unpack {path.suffix} files to folders; save weights as .safetensors or .onnx"
    if path.suffix == ".whl" and "+" in path.name:
        yield f"{name}: Kaggle strips + from names, and no wheel is left; build it without a local version"
    if len(path.parts) == 1 and path.name in rules.NEVER_UPLOADED:
        yield f"{name} is not uploaded from the top of a folder; move it into a sub-folder, or take it out"


@contextmanager
def staged(contents: Contents, metadata: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder of links to exactly these files, with this metadata: what an upload is given."""
    with tempfile.TemporaryDirectory(prefix="kaggle-kit-publish-") as name:
        folder = Path(name)
        for inside, path in contents.files.items():
            place = folder / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(path.resolve(), place)
        (folder / DATASET_METADATA).write_text(json.dumps(metadata, ensure_ascii=True), encoding="utf-8")
        yield folder


def _link(path: Path, place: Path) -> None:
    try:
        place.symlink_to(path)
    except OSError:  # a file system, or a Windows user, without links
        shutil.copy2(path, place)
