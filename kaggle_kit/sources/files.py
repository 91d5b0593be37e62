"""Encoded image files: in one folder, in class folders, or inside a zip that is never unpacked."""

from __future__ import annotations

import errno
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from kaggle_kit.errors import DataError, ImageError, some_of
from kaggle_kit.sources.encoded import MAX_FILE_BYTES, Blobs
from kaggle_kit.tables import Text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# What zipfile raises for damage, a password, an unknown compression, a cut file.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
)


def open_files(folder: Path, ids: Text, *, suffix: str, class_folders: bool, lacking_ok: bool = False) -> Blobs:
    """Return the encoded files of these ids, in their order.

    Args:
        folder: A folder; or a zip file, or a folder inside of one, such as `images.zip/train`.
        ids: (N,) names below the folder.
        suffix: Added to an id for its file's name.
        class_folders: Look for each name in the folders below `folder`, not in `folder` itself.
        lacking_ok: Whether files that are missing are told of when they are read, as broken images are.

    Raises:
        DataError: When the folder or files are missing, or an id is no name below the folder.
    """
    names = [f"{name}{suffix}" for name in ids.tolist()]
    odd = [name for name in names if not is_plain_path(name)]
    if odd:
        raise DataError(f"id(s) {some_of(odd)} are no plain file names; expected names of files in {folder}")
    archive, inside = _split_at_zip(folder)
    if archive is not None:
        placed = _placed(names, _list_zip(archive, inside), folder, class_folders, lacking_ok=lacking_ok)
        return _ZipBlobs(archive, placed, inside)
    present = list_files(folder, nested=class_folders or any("/" in name for name in names))
    return _FolderBlobs(folder, _placed(names, present, folder, class_folders, lacking_ok=lacking_ok))


def list_class_folders(folder: Path, *, suffix: str) -> dict[str, str]:
    """Return {`class/name`: class} of the files one folder below `folder`, which may lie inside a zip; sorted.

    Args:
        folder: The folder of the class folders.
        suffix: What files' names end with; it is no part of the ids. Empty: any image's. Others and hidden ones are
            left out.

    Raises:
        DataError: When there is no such folder, or it holds no folders of files.
    """
    archive, inside = _split_at_zip(folder)
    names = list_files(folder, nested=True) if archive is None else _list_zip(archive, inside)
    nested = [name for name in names if name.count("/") == 1 and not _is_hidden(name)]
    shown = [n for n in nested if (n.endswith(suffix) if suffix else n.lower().endswith(IMAGE_SUFFIXES))]
    if not shown:
        what = f"files that end with {suffix!r}" if suffix else "files"
        raise DataError(f"{folder} holds no class folders with {what}; check the task's `images.folder`")
    return {name.removesuffix(suffix): name.split("/")[0] for name in sorted(shown)}


def is_plain_path(name: str) -> bool:
    """Return whether a name stays below its folder and means the same on every system."""
    parts = name.split("/")
    return not (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or re.match(r"[A-Za-z]:", name)
        or any(ord(letter) < 32 for letter in name)
    )


def _is_hidden(path: str) -> bool:
    """Return whether a path is none of the user's: notebooks' checkpoints, what macOS puts in zips."""
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def list_files(folder: Path, *, nested: bool) -> list[str]:
    """Return the names of the files in a folder, and with `nested` of those one or more folders below.

    Raises:
        DataError: When there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"there is no image folder {str(folder)!r}; check the task's `images.folder`")
    if not nested:
        return [entry.name for entry in os.scandir(folder)]
    found = []
    for parent, _, names in os.walk(folder):
        below = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        found += [str(below / name) for name in names if not name.startswith(".")]
    return found


def _split_at_zip(folder: Path) -> tuple[Path | None, str]:
    """Return the zip file in a path and the folder inside of it, or None and nothing."""
    for path in (folder, *folder.parents):
        if path.suffix.lower() == ".zip" and path.is_file():
            return path, folder.relative_to(path).as_posix().removeprefix(".")
    return None, ""


def _list_zip(archive: Path, inside: str) -> list[str]:
    """Return the names of an archive's files below the folder `inside`.

    Raises:
        DataError: For a damaged archive, or one with a path that climbs out of it.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [info.filename for info in opened.infolist() if not info.filename.endswith("/")]
    except ZIP_ERRORS as error:
        raise DataError(f"{archive} is no whole zip file ({error}); download it again") from None
    odd = [name for name in names if not is_plain_path(name)]
    if odd:
        raise DataError(
            f"{archive} holds path(s) that leave it, or are not written as folder/name: {some_of(odd)}; pack it anew"
        )
    prefix = f"{inside}/" if inside else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _placed(
    names: list[str], present: Iterable[str], folder: Path, class_folders: bool, *, lacking_ok: bool
) -> list[str]:
    """Return each name's path below the folder; of one that is missing and may be, the name.

    Raises:
        DataError: Counting the names that have none, or, in class folders, more than one.
    """
    places: dict[str, list[str]] = {}
    for path in present:
        places.setdefault(path, []).append(path)
        if class_folders and "/" in path and not _is_hidden(path):
            places.setdefault(path.rpartition("/")[2], []).append(path)
    missing = [name for name in names if name not in places]
    if missing and lacking_ok:
        places |= {name: [name] for name in missing}
    elif missing:
        raise DataError(
            f"{folder} lacks {len(missing):,} of {len(names):,} images: {some_of(missing)}; it holds "
            f"{some_of(sorted(places)) or 'no files'}; check the download and the task's `images.folder`, "
            "`images.suffix` and `images.class_folders`"
        )
    several = [name for name in names if len(places[name]) > 1]
    if several:
        raise DataError(
            f"{folder} holds {several[0]!r} several times: {some_of(places[several[0]])}; write ids as class/name"
        )
    return [places[name][0] for name in names]


class _FolderBlobs:
    def __init__(self, folder: Path, paths: list[str]) -> None:
        self._folder = folder
        self._paths = paths

    def read(self, row: int) -> bytes:
        path = self._folder / self._paths[row]
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
                raise _too_large(found.st_size)
            return path.read_bytes()
        except FileNotFoundError:
            raise ImageError("is gone; bring it back or drop the image") from None
        except OSError as error:  # the disk's fault, not the image's: no blank for it
            raise DataError(f"{path} cannot be read ({error.strerror}); check the disk, and start again") from None

    def name(self, row: int) -> str:
        return str(self._folder / self._paths[row])

    def files(self) -> list[Path]:
        return [self._folder / path for path in self._paths]

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files())

    def describe(self) -> str:
        return str(self._folder)


class _ZipBlobs:
    """Members of an archive by their whole names; the archive is opened where it is first read, once a process."""

    def __init__(self, archive: Path, names: list[str], inside: str) -> None:
        self._archive = archive
        self._inside = inside
        self._names = names
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __reduce__(self) -> tuple[type[_ZipBlobs], tuple[Path, list[str], str]]:
        return _ZipBlobs, (self._archive, self._names, self._inside)

    def read(self, row: int) -> bytes:
        try:
            opened = self._open()
            info = opened.getinfo(self._member(row))
            if info.file_size > MAX_FILE_BYTES:
                raise _too_large(info.file_size)
            return opened.read(info)
        except ImageError:
            raise
        except ZIP_ERRORS as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise DataError(f"{self._archive} cannot be read ({error.strerror}); check the disk") from None
            raise ImageError(f"cannot be read from the archive ({error}); replace or drop it") from None

    def _open(self) -> zipfile.ZipFile:
        """Return this process's own handle: one that was open before a fork shares its place in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self._archive))
        return self._opened[1]

    def _member(self, row: int) -> str:
        return f"{self._inside}/{self._names[row]}" if self._inside else self._names[row]

    def name(self, row: int) -> str:
        return str(self._archive / self._member(row))

    def files(self) -> list[Path]:
        return [self._archive]

    def num_bytes(self) -> int:
        opened = self._open()
        return sum(opened.getinfo(self._member(row)).file_size for row in range(len(self._names)))

    def describe(self) -> str:
        return str(self._archive / self._inside)


def _too_large(size: int) -> ImageError:
    return ImageError(f"is {size:,} bytes, or no plain file; expected an image of at most {MAX_FILE_BYTES:,} bytes")
