"""What a sweep tries: ranges written like settings, `optim.lr=log(1e-4,1e-2)`, and read without running anything."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.experiment import OWN_SETTINGS, Experiment, compose_experiment

Kind = Literal["log", "uniform", "int", "choice"]
KINDS = ("log", "uniform", "int", "choice")
CASTS = ("str", "float", "bool", "json_str")  # functions of Hydra's grammar that make one fixed value
WRITTEN = "log(LOW,HIGH), uniform(LOW,HIGH), int(LOW,HIGH[,STEP]) or choice(A,B,...)"
CALL = re.compile(r"(\w+)\s*\((.*)\)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of one setting that a sweep tries.

    Attributes:
        kind: `log`: between `low` and `high`, every factor equally likely; `uniform`: every difference; `int`: whole
            numbers, both ends included; `choice`: one of `options`.
        low: The lowest value; not for choices.
        high: The highest.
        step: int: from one value to the next.
        options: choice: the values, as they are written on the command line.
    """

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    step: int = 1
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "choice":
            if not self.options or not all(self.options):
                raise SettingError("choice() has an empty option; write choice(32,64,128)")
            if len(set(self.options)) != len(self.options):
                raise SettingError("choice() names an option twice; name each once")
            return
        if not self.low < self.high:
            raise SettingError(f"the low end {self.low:g} is not below the high end {self.high:g}; swap or widen them")
        if self.kind == "log" and self.low <= 0:
            raise SettingError(f"log() starts at {self.low:g}; it needs a low end above 0, or use uniform()")
        if self.kind == "int" and (self.step < 1 or (self.high - self.low) % self.step):
            raise SettingError(f"step {self.step} does not lead from {self.low:g} to {self.high:g}; try another")

    @property
    def ends(self) -> tuple[str, ...]:
        """The values to try out before a sweep: both ends, or every option."""
        return self.options or tuple(self.text(value) for value in (self.low, self.high))

    def text(self, value: float | str) -> str:
        """Return a value as an override writes it."""
        return str(int(value)) if self.kind == "int" else str(value)

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"choice({','.join(self.options)})"
        step = f",{self.step}" if self.step != 1 else ""
        return f"{self.kind}({self.text(self.low)},{self.text(self.high)}{step})"


@dataclass(frozen=True, kw_only=True)
class Space:
    """What all trials share, and what differs between them.

    Attributes:
        fixed: Overrides of every trial, such as `task=digits`.
        ranges: {dotted setting: its range}.
    """

    fixed: tuple[str, ...]
    ranges: dict[str, Range]

    def overrides(self, values: Mapping[str, float | str]) -> list[str]:
        """Return a trial's overrides.

        Args:
            values: {dotted setting: value}, one for every range.
        """
        return [*self.fixed, *(f"{key}={self.ranges[key].text(value)}" for key, value in values.items())]

    def compose(self, values: Mapping[str, float | str], *, out: Path) -> Experiment:
        """Return a trial's experiment, whose run goes to `out`.

        Raises:
            SettingError: For values that do not go together.
        """
        return dataclasses.replace(compose_experiment(self.overrides(values)), out=out)


def read_space(overrides: Sequence[str], file: Path | None = None) -> Space:
    """Divide overrides into fixed ones and ranges.

    Args:
        overrides: `KEY=VALUE`, where VALUE may be a range.
        file: A YAML mapping of dotted settings to ranges or values; what `overrides` say of a setting goes before it.
            None: the kit's default space where `overrides` hold no range, else nothing further.

    Raises:
        SettingError: For a malformed range, a range of a setting that names files, or a file that is no mapping.
    """
    fixed, ranges = _divide(overrides)
    said = {_key(override) for override in overrides}
    if file is not None or not ranges:
        values = _read_file(file)
        more_fixed, more_ranges = _divide([f"{k}={v}" for k, v in values.items() if k not in said])
        fixed, ranges = [*more_fixed, *fixed], {**more_ranges, **ranges}
    if not ranges:
        raise SettingError(f"there is nothing to sweep; write a range, such as optim.lr=log(1e-4,1e-2): {WRITTEN}")
    for key in ranges:
        if key in (*OWN_SETTINGS, "seed", "max_hours"):
            raise SettingError(f"`{key}` is no setting to sweep over; give one value")
        if key.startswith(("hydra", "+", "~")):
            raise SettingError(f"`{key}` cannot have a range; sweep over settings of the training")
    return Space(fixed=tuple(fixed), ranges=ranges)


def check_space(space: Space) -> Experiment:
    """Compose the ends of every range, so that no trial fails hours later for a slip of the pen.

    Returns:
        The experiment of all low ends and first options; `out` is the sweep's own folder.

    Raises:
        SettingError: For an unknown setting, or a value that it cannot have.
    """
    low = {key: _value(one, one.ends[0]) for key, one in space.ranges.items()}
    first = compose_experiment(space.overrides(low))
    if first.overwrite:
        raise SettingError("`overwrite` is not for sweeps, which continue what they find; choose another `out`")
    if first.like is not None:
        raise SettingError("`like` trains on everything, which gives no score to sweep by; leave it out")
    for key, one in space.ranges.items():
        for end in one.ends[1:]:
            compose_experiment(space.overrides({**low, key: _value(one, end)}))
    return first


def parse_range(key: str, text: str) -> Range | None:
    """Return the range that `text` writes, or None where it is a fixed value.

    Args:
        key: The setting, for messages.
        text: Such as `log(1e-4,1e-2)`.

    Raises:
        SettingError: For something that looks like a range and is none.
    """
    call = CALL.fullmatch(text.strip())
    if not call or call[1] in CASTS:
        return None
    kind, arguments = call[1], list(_split(call[2]))
    if kind not in KINDS:
        raise SettingError(f"`{key}` is {text!r}; a range is {WRITTEN}{_close(kind)}")
    try:
        if kind == "choice":
            return Range(kind="choice", options=tuple(arguments))
        numbers = [_number(argument) for argument in arguments]
        if len(numbers) not in ((2, 3) if kind == "int" else (2,)):
            raise SettingError(f"{kind}() has {len(numbers)} numbers; write {WRITTEN}")
        if kind == "int" and any(number != int(number) for number in numbers):
            raise SettingError("int() takes whole numbers; use uniform() for others")
        step = int(numbers[2]) if len(numbers) == 3 else 1
        return Range(kind="int" if kind == "int" else _float_kind(kind), low=numbers[0], high=numbers[1], step=step)
    except SettingError as error:
        raise SettingError(f"`{key}` is {text!r}: {error}") from None


def _float_kind(kind: str) -> Kind:
    return "log" if kind == "log" else "uniform"


def _number(text: str) -> float:
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        raise SettingError(f"{text!r} is no number; write numbers like 3, 0.1 or 1e-4")
    return float(text)


def _split(text: str) -> Iterator[str]:
    """Yield the arguments between top-level commas: `[64,64]` and quoted text stay whole."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield part.strip()
            part = ""
            continue
        part += letter
    yield part.strip()


def _divide(overrides: Sequence[str]) -> tuple[list[str], dict[str, Range]]:
    fixed: list[str] = []
    ranges: dict[str, Range] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        one = parse_range(key, text) if equals else None
        if one is None:
            fixed.append(override)
        elif key in ranges:
            raise SettingError(f"`{key}` has two ranges; give one")
        else:
            ranges[key] = one
    return fixed, ranges


def _read_file(path: Path | None) -> dict[str, object]:
    """Return {dotted setting: range or value} of a space's file; None: the kit's own."""
    import yaml

    if path is not None and not path.is_file():
        raise SettingError(f"there is no space file {str(path)!r}; give a YAML file of settings and their ranges")
    where = resources.files("kaggle_kit.conf") / "sweep" / "default.yaml" if path is None else path
    try:
        values = yaml.safe_load(where.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingError(f"{path} is not valid YAML; write lines like `optim.lr: log(1e-4, 1e-2)`") from None
    if not isinstance(values, Mapping) or any(isinstance(value, (Mapping, list)) for value in values.values()):
        raise SettingError(f"{path} must hold lines like `optim.lr: log(1e-4, 1e-2)`, with dotted names, not nested")
    return {str(key): value for key, value in values.items()}


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _close(kind: str) -> str:
    close = did_you_mean(kind, KINDS)
    return close if "did you mean" in close else ""


def _value(one: Range, text: str) -> float | str:
    return text if one.kind == "choice" else float(text)
