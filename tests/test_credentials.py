from __future__ import annotations

import json
from pathlib import Path

import pytest

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.credentials import find_credentials

KEY = {"username": "anna", "key": "0123456789abcdef0123456789abcdef"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    return tmp_path


def test_without_any_it_says_where_to_get_them(home: Path) -> None:
    with pytest.raises(
        KaggleError, match=r"no credentials for Kaggle; get a token at https://www\.kaggle\.com/settings"
    ):
        find_credentials({})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("access_token", "KGAT_abc"),
        ("access_token.txt", "KGAT_abc"),
        ("kaggle.json", json.dumps(KEY)),
        ("credentials.json", "{}"),
    ],
)
def test_every_file_of_the_package_counts(home: Path, name: str, content: str) -> None:
    (home / ".kaggle" / name).write_text(content)
    assert find_credentials({}) == str(home / ".kaggle" / name)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"KAGGLE_API_TOKEN": "KGAT_abc"}, "KAGGLE_API_TOKEN"),
        ({"KAGGLE_USERNAME": "anna", "KAGGLE_KEY": "abc"}, "KAGGLE_USERNAME and KAGGLE_KEY"),
        ({"KAGGLE_USERNAME": "anna"}, None),
    ],
)
def test_variables_count_where_they_are_whole(home: Path, environment: dict[str, str], found: str | None) -> None:
    if found is None:
        with pytest.raises(KaggleError, match="no credentials"):
            find_credentials(environment)
    else:
        assert find_credentials(environment) == found


@pytest.mark.parametrize("content", ["", "{", "[]", '{"username": "anna"}', '{"username": "anna", "key": ""}'])
def test_half_a_file_is_none(home: Path, content: str) -> None:
    (home / ".kaggle" / "kaggle.json").write_text(content)
    (home / ".kaggle" / "access_token").write_text(" \n")
    with pytest.raises(KaggleError, match="no credentials"):
        find_credentials({})


def test_the_configuration_may_lie_elsewhere(home: Path) -> None:
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "kaggle.json").write_text(json.dumps(KEY))
    found = find_credentials({"KAGGLE_CONFIG_DIR": str(home / "elsewhere")})
    assert found == str(home / "elsewhere" / "kaggle.json")


def test_no_message_holds_a_secret(home: Path) -> None:
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps(KEY))
    assert KEY["key"] not in find_credentials({})
    assert "KGAT_abc" not in find_credentials({"KAGGLE_API_TOKEN": "KGAT_abc"})
