"""The kit's own wheel, made from the installed package: what a kernel attaches as a dataset."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import kaggle_kit
from kaggle_kit.errors import KitError
from kaggle_kit.files import replacing

PACKAGE = Path(kaggle_kit.__file__).parent
SKIPPED = ("__pycache__", ".pyc")
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first date: the same sources give the same bytes


def wheel_name() -> str:
    """Return the wheel's file name: pure Python, and no `+`, which an upload to Kaggle would strip."""
    return f"kaggle_kit-{kaggle_kit.__version__}-py3-none-any.whl"


def build_wheel(folder: Path) -> Path:
    """Write the wheel of the running package into `folder`, offline and always with the same bytes.

    An installed package has no source tree for a build backend to work on, and build backends want the network for
    their own requirements; a pure wheel is a zip of the package with three small files.

    Returns:
        The wheel's path.

    Raises:
        KitError: When the package's metadata is not installed.
    """
    try:
        distribution = metadata.distribution("kaggle_kit")
    except metadata.PackageNotFoundError:
        raise KitError(
            "kaggle_kit is not installed here (only on the path); pip install it to make its wheel"
        ) from None
    info = f"kaggle_kit-{kaggle_kit.__version__}.dist-info"
    files = dict(_package_files())
    files[f"{info}/METADATA"] = (distribution.read_text("METADATA") or _minimal_metadata()).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: kaggle_kit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nkaggle-kit = kaggle_kit.cli:main\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    path = folder / wheel_name()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED, compresslevel=9)
    return path


def kernels_folder() -> Path:
    """Return where the kernel templates lie: inside the wheel, or beside the package in its repository.

    Raises:
        KitError: When they are in neither place.
    """
    for folder in (PACKAGE / "kernels", PACKAGE.parent / "kernels"):
        if (folder / "submit").is_dir():
            return folder
    raise KitError(f"no kernel templates beside {PACKAGE}; install kaggle_kit from its wheel or repository")


def find_kernel(path: Path) -> Path:
    """Return a kernel's folder: the one at `path`, or the template of that name, such as `submit`."""
    return kernels_folder() / path if not path.is_dir() and len(path.parts) == 1 else path


def _package_files() -> Iterator[tuple[str, bytes]]:
    for root, prefix in ((PACKAGE, "kaggle_kit"), (kernels_folder(), "kaggle_kit/kernels")):
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root).as_posix()
            if (
                path.is_file()
                and not any(word in inside for word in SKIPPED)
                and not (root is PACKAGE and inside.startswith("kernels/"))
            ):
                yield f"{prefix}/{inside}", path.read_bytes()


def _record(files: dict[str, bytes], own_name: str) -> bytes:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return ("\n".join([*lines, f"{own_name},,"]) + "\n").encode()


def _minimal_metadata() -> str:
    return f"Metadata-Version: 2.1\nName: kaggle_kit\nVersion: {kaggle_kit.__version__}\n"
