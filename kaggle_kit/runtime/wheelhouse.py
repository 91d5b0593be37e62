"""What a wheelhouse holds: the record that lies beside its wheels, and what wheels' names say.

wheelhouse.json   the kit's version, the images it is for, and of each wheel its SHA-256 and size
*.whl             the kit, and what those images lack
tensorrt/*.whl    TensorRT 10, where the user put it there
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kaggle_kit.errors import KitError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.settings import build, plain

RECORD = "wheelhouse.json"
TENSORRT = "tensorrt"
AGAIN = "build it again with `kaggle-kit wheelhouse`, and upload it"


@dataclass(frozen=True, kw_only=True)
class Image:
    """One of Kaggle's images that a wheelhouse is for.

    Attributes:
        python: Major and minor version.
        date: Of the profile it was resolved against, ISO.
    """

    python: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel.

    Attributes:
        file: Its path below the wheelhouse.
        distribution: Its normalised name, such as `onnxruntime-gpu`.
        version: Its version.
        sha256: Of the file.
        size_bytes: Of the file.
        profiles: The images it is for.
    """

    file: str
    distribution: str
    version: str
    sha256: str
    size_bytes: int
    profiles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Wheelhouse:
    """All that lies in a wheelhouse.

    Attributes:
        kit: The kit's version.
        profiles: {name: image}.
        wheels: The kit's own first.
        kind: What tells this file from others.
        format: Of this file.
    """

    kit: str
    profiles: dict[str, Image]
    wheels: tuple[Wheel, ...]
    kind: Literal["wheelhouse"] = "wheelhouse"
    format: Literal[1] = 1

    def pythons_of(self, wheel: Wheel) -> tuple[str, ...]:
        """Return the Pythons, such as `3.12`, that a wheel is for."""
        return tuple(self.profiles[name].python for name in wheel.profiles if name in self.profiles)


def read_wheelhouse(folder: Path) -> Wheelhouse | None:
    """Return a folder's record, or None where it has none.

    Raises:
        KitError: When the record does not read.
    """
    path = folder / RECORD
    try:
        return build(Wheelhouse, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, SettingError) as error:
        raise KitError(f"{path} does not read ({error}); {AGAIN}") from None


def write_wheelhouse(wheelhouse: Wheelhouse, folder: Path) -> None:
    """Write a folder's record, atomically."""
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(plain(wheelhouse), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class WheelName:
    """What a wheel's file name says.

    Attributes:
        distribution: Normalised.
        version: As written.
        pythons: Tags such as `py3` and `cp312`.
        abis: Tags such as `none`, `abi3` and `cp312`.
        platforms: Tags such as `any` and `manylinux_2_28_x86_64`.
    """

    distribution: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    @property
    def is_pure(self) -> bool:
        """Whether it runs on every system."""
        return self.abis == ("none",) and self.platforms == ("any",)

    def fits_here(self) -> bool:
        """Return whether the running Python takes it. The age of the C library is left to the installer."""
        major, minor = sys.version_info[:2]
        own = f"cp{major}{minor}"
        if "abi3" in self.abis:
            least = min((int(tag[3:]) for tag in self.pythons if re.fullmatch(rf"cp{major}\d+", tag)), default=999)
            python = least <= minor
        else:
            python = bool({own, f"py{major}", f"py{major}{minor}"} & set(self.pythons))
            python = python and bool({own, "none"} & set(self.abis))
        machine = re.sub(r"[-.]", "_", sysconfig.get_platform())  # linux_x86_64
        system, _, kind = machine.partition("_")
        return python and any(tag == "any" or (tag.endswith(f"_{kind}") and system in tag) for tag in self.platforms)

    @property
    def order(self) -> tuple[int, ...]:
        """The version's numbers: of two wheels, the newer one has the larger order."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version))


def parse_name(file: str) -> WheelName | None:
    """Return what a wheel's file name says, or None where it is no wheel's."""
    parts = Path(file).name.removesuffix(".whl").split("-")
    if not file.endswith(".whl") or len(parts) not in (5, 6):
        return None
    pythons, abis, platforms = (tuple(part.split(".")) for part in parts[-3:])
    return WheelName(
        distribution=normal_name(parts[0]), version=parts[1], pythons=pythons, abis=abis, platforms=platforms
    )


def normal_name(distribution: str) -> str:
    """Return a distribution's name as indexes compare it: lower case, with single dashes."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
