from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from kaggle_kit.errors import SettingError
from kaggle_kit.settings import build, fingerprint, plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise SettingError(f"`lr` is {self.lr}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    size: tuple[int, int] | None = None
    mode: Literal["fast", "slow"] = "fast"
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=dict)
    flag: bool = False


VALUES = {
    "name": "a",
    "size": [1, 2],
    "mode": "slow",
    "names": ["x"],
    "inner": {"lr": 1},
    "table": {"t": {"lr": 0.5}},
    "flag": True,
}


def test_build_and_plain_are_inverse() -> None:
    made = build(Outer, VALUES)
    assert made.size == (1, 2)
    assert made.inner == Inner(lr=1.0)
    assert isinstance(made.inner.lr, float)
    assert build(Outer, plain(made)) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "b"}, r"`nam` is not a setting; did you mean 'name'\?"),
        ({"inner": {"lrr": 1}}, r"`inner\.lrr` is not a setting; did you mean 'lr'\?"),
        ({"inner": {"lr": 0}}, r"`inner`: `lr` is 0.0; it must be above 0"),
        ({"inner": {"lr": "0.1"}}, r"`inner\.lr` is '0.1' \(str\); expected float"),
        ({"mode": "fats"}, r"`mode` is 'fats' \(str\); expected one of 'fast', 'slow'; did you mean 'fast'\?"),
        ({"size": [1, 2, 3]}, r"`size` is \[1, 2, 3\] \(list\); expected a list of 2 x int or null"),
        ({"flag": 1}, r"`flag` is 1 \(int\); expected bool"),
        ({"table": {"t": {"x": 1}}}, r"`table\.t\.x` is not a setting"),
        ({"names": "x"}, r"`names` is 'x' \(str\); expected a list of str"),
        ({"name": True}, r"`name` is True \(bool\); expected str"),
    ],
)
def test_build_refuses_and_names_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build(Outer, {**VALUES, **change})


def test_build_names_a_missing_setting() -> None:
    with pytest.raises(SettingError, match=r"`name` is missing; add it \(a str\)"):
        build(Outer, {})


def test_build_refuses_what_is_no_mapping() -> None:
    with pytest.raises(SettingError, match="expected a mapping of settings, found None"):
        build(Outer, None)


def test_fingerprint_changes_with_any_setting() -> None:
    made = build(Outer, VALUES)
    assert fingerprint(made) == fingerprint(build(Outer, VALUES))
    assert fingerprint(made) != fingerprint(build(Outer, {**VALUES, "inner": {"lr": 2}}))
