"""Kaggle's images, a YAML file each: what their Python finds there, as of the file's date.

A new image is a new file. What is not known of an image is left out of its file, and said to be unknown.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.settings import build


@dataclass(frozen=True, kw_only=True)
class ImageProfile:
    """One image.

    Attributes:
        name: Such as `python3.12`.
        date: When its facts were read, ISO.
        python: Major and minor version.
        cuda: CUDA's version there.
        packages: {distribution: version} of what is known exactly; `opencv` stands for whichever of its distributions
            is there.
        also: Distributions there in unknown versions.
        absent: Distributions that are not there.
        brings: Requirements that a wheelhouse brings along for it.
    """

    name: str
    date: str
    python: str
    cuda: str
    packages: dict[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would be taken for something else later."""
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise SettingError(f"`date` is {self.date!r}; expected a day such as 2026-11-01") from None
        if self.python.count(".") != 1 or not self.python.replace(".", "").isdigit():
            raise SettingError(f"`python` is {self.python!r}; expected a version such as '3.12', in quotes")
        both = sorted({*self.packages, *self.also} & set(self.absent))
        if both:
            raise SettingError(f"`absent` names {', '.join(both)}, which the image has by `packages` or `also`")

    @property
    def python_tag(self) -> str:
        """Return the interpreter's tag in wheels' names, such as `cp312`."""
        return f"cp{self.python.replace('.', '')}"


def read_profiles() -> dict[str, ImageProfile]:
    """Return {name: profile} of all images that the kit knows, the oldest Python first."""
    files = resources.files("kaggle_kit.platform.profiles").iterdir()
    texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.name.endswith(".yaml")}
    found = [_read_text(text, name) for name, text in texts.items()]
    return {one.name: one for one in sorted(found, key=lambda one: tuple(map(int, one.python.split("."))))}


def read_profile(name_or_path: str | Path) -> ImageProfile:
    """Return the profile of that name, or of a YAML file of one's own.

    Raises:
        SettingError: When there is no such profile or file, or it is not valid.
    """
    known = read_profiles()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return _read_text(path.read_text(encoding="utf-8"), str(path))
    raise SettingError(
        f"{str(name_or_path)!r} is no profile of Kaggle's image, and no file{did_you_mean(str(name_or_path), known)}"
    )


def _read_text(text: str, where: str) -> ImageProfile:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise SettingError(f"{where} is not valid YAML near line {line}; check its indentation and colons") from None
    if isinstance(values, dict) and isinstance(values.get("date"), datetime.date):
        values["date"] = values["date"].isoformat()
    try:
        return build(ImageProfile, values)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from None
