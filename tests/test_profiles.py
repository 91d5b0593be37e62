from __future__ import annotations

from pathlib import Path

import pytest

from kaggle_kit.errors import SettingError
from kaggle_kit.platform.profiles import read_profile, read_profiles

GOOD = "name: mine\ndate: 2026-11-01\npython: '3.12'\ncuda: '12.8'\n"


def test_the_images_in_the_field_are_known_by_their_pythons() -> None:
    known = read_profiles()
    assert [(name, one.python_tag) for name, one in known.items()] == [("python3.12", "cp312"), ("python3.13", "cp313")]
    assert all("onnxruntime-gpu" in one.absent for one in known.values())
    assert read_profile("python3.12").packages["pyarrow"] == "18.1.0"


def test_what_an_image_has_no_profile_brings() -> None:
    for one in read_profiles().values():
        brought = {requirement.split("=")[0].rstrip("<>") for requirement in one.brings}
        assert not brought & {*one.packages, *one.also}


def test_an_image_of_one_s_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD + "packages: {numpy: 2.3.0}\nbrings: [ttach]\n")
    mine = read_profile(tmp_path / "mine.yaml")
    assert (mine.date, mine.packages, mine.brings) == ("2026-11-01", {"numpy": "2.3.0"}, ("ttach",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("'3.12'", "3.12"), r"`python` is 3.12 \(float\); expected str"),
        (GOOD.replace("'3.12'", "'3.12.1'"), r"`python` is '3.12.1'; expected a version such as '3.12'"),
        (GOOD.replace("2026-11-01", "autumn"), "`date` is 'autumn'; expected a day such as 2026-11-01"),
        (GOOD + "package: {}\n", "`package` is not a setting; did you mean 'packages'"),
        (GOOD + "also: [ttach]\nabsent: [ttach]\n", "`absent` names ttach, which the image has"),
        ("name: [", "mine.yaml is not valid YAML near line"),
    ],
)
def test_a_file_that_is_no_image_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_profile(tmp_path / "mine.yaml")


def test_a_name_nobody_knows_is_refused() -> None:
    with pytest.raises(SettingError, match=r"'python3.14' is no profile .* did you mean 'python3.1"):
        read_profile("python3.14")
