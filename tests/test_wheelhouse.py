"""A wheelhouse: what an image lacks and nothing else, fetched once, recorded. pip is real, its index a folder here."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_wheels import made_wheel

import kaggle_kit
from kaggle_kit.errors import KitError, SettingError
from kaggle_kit.platform import index, wheelhouse
from kaggle_kit.platform.index import Found, find_wheel
from kaggle_kit.platform.profiles import ImageProfile
from kaggle_kit.platform.requirements import resolve
from kaggle_kit.platform.wheel import build_wheel, wheel_name
from kaggle_kit.platform.wheelhouse import DATASET, build_wheelhouse
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.runtime.wheelhouse import RECORD, read_wheelhouse
from kaggle_kit.wheelhouse_command import add_wheelhouse_parsers

LINUX = "manylinux_2_28_x86_64"
OLD, NEW = (
    ImageProfile(
        name=f"python{python}",
        date="2026-11-01",
        python=python,
        cuda="12.8",
        packages={"numpy": "2.0.2", "opencv": "4.13", "torch": "2.10.0+cu128", "protobuf": "5.29.5"},
        also=("pyarrow", "PyYAML"),
        brings=("engine>=1",),
    )
    for python in ("3.12", "3.13")
)


def quiet(_line: str) -> None:
    pass


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's index: a wheel for each Python that requires a pure one, which the images have not."""
    folder = tmp_path / "index"
    for python in ("cp312", "cp313"):
        needs = ["numpy>=1.21", "torch", "flat", "opencv-python-headless>=4", "other; extra == 'all'", "protobuf<6"]
        made_wheel(folder, "engine", "1.2", tag=f"{python}-{python}-{LINUX}", requires=needs)
    made_wheel(folder, "engine", "1.9", tag="cp311-cp311-" + LINUX)
    made_wheel(folder, "engine", "1.9", tag="cp312-cp312-win_amd64")
    made_wheel(folder, "flat", "3.0")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.whl"))


def test_each_image_gets_what_it_lacks_and_what_they_share_lies_once(shelf: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    built = build_wheelhouse(out, [OLD, NEW], say=said.append)
    engines = [f"engine-1.2-{python}-{python}-{LINUX}.whl" for python in ("cp312", "cp313")]
    assert names(out) == [*engines, "flat-3.0-py3-none-any.whl", wheel_name()]
    assert {wheel.file: wheel.profiles for wheel in built.wheels} == {
        wheel_name(): ("python3.12", "python3.13"),
        engines[0]: ("python3.12",),
        engines[1]: ("python3.13",),
        "flat-3.0-py3-none-any.whl": ("python3.12", "python3.13"),
    }
    for wheel in built.wheels:
        assert wheel.sha256 == file_sha256(out / wheel.file) and wheel.size_bytes == (out / wheel.file).stat().st_size
    assert read_wheelhouse(out) == built and built.kit == kaggle_kit.__version__
    assert built.profiles["python3.13"].date == "2026-11-01"
    assert json.loads((out / "dataset-metadata.json").read_text()) == DATASET
    assert "engine requires flat, which python3.12 is not known to have: brought too" in said
    assert any(line.startswith("3 of 3 wheels to download, ") and line.endswith(" kB") for line in said)
    assert any(line.startswith(f"downloading {engines[0]} (1 of 3), ") for line in said)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".whl") == ["dataset-metadata.json", RECORD]


def test_what_is_there_is_not_fetched_again_and_what_is_not_wanted_any_more_goes(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = build_wheelhouse(out, [OLD, NEW], say=quiet)
    (out / "README.md").write_text("mine")
    (out / "dataset-metadata.json").write_text('{"id": "me/mine"}')
    with monkeypatch.context() as patch:
        patch.setattr(wheelhouse, "fetch_wheel", lambda *_args, **_options: pytest.fail("fetched"))
        assert build_wheelhouse(out, [OLD, NEW], say=quiet) == first
    damaged = out / "flat-3.0-py3-none-any.whl"
    damaged.write_bytes(b"damaged")
    said: list[str] = []
    built = build_wheelhouse(out, [OLD], say=said.append)
    assert sorted(wheel.file for wheel in built.wheels) == names(out) and len(names(out)) == 3
    assert file_sha256(damaged) == next(wheel.sha256 for wheel in first.wheels if wheel.file == damaged.name)
    assert f"engine-1.2-cp313-cp313-{LINUX}.whl: of an earlier wheelhouse, deleted" in said
    assert (out / "README.md").read_text() == "mine" and "me/mine" in (out / "dataset-metadata.json").read_text()


def test_a_killed_run_leaves_whole_wheels_which_the_next_one_keeps(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, fetched = index.fetch_wheel, []

    def dying(found: Found, folder: Path, *, python: str) -> Path:
        fetched.append(found.file)
        if found.distribution == "flat" and len(fetched) == 2:
            (folder / found.file).write_bytes(b"half")
            raise KeyboardInterrupt
        return fetch(found, folder, python=python)

    monkeypatch.setattr(wheelhouse, "fetch_wheel", dying)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_wheelhouse(out, [OLD], say=quiet)
    assert [path.name for path in out.iterdir()] == [f"engine-1.2-cp312-cp312-{LINUX}.whl"]
    (out / ".wheelhouse.killed").mkdir()  # as SIGKILL leaves it
    build_wheelhouse(out, [OLD], say=quiet)
    assert fetched.count(f"engine-1.2-cp312-cp312-{LINUX}.whl") == 1
    assert len(names(out)) == 3 and not list(out.glob(".*"))


def test_more_can_be_added_and_some_left_out(shelf: Path, tmp_path: Path) -> None:
    made_wheel(shelf, "more", "2.0", requires=["flat>=2"])
    built = build_wheelhouse(tmp_path / "out", [OLD], add=["more<3"], without=["Flat"], say=quiet)
    assert [wheel.distribution for wheel in built.wheels] == ["kaggle-kit", "engine", "more"]


def test_what_has_its_source_only_is_made_once(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, made = index.run_pip, []

    def pip(arguments: Sequence[str]):
        if arguments[0] != "wheel":
            return run(arguments)
        made.append(arguments[-1])
        made_wheel(Path(arguments[arguments.index("-w") + 1]), "parser", "4.9.3", tag=tag)
        return run(["--version"])

    monkeypatch.setattr(index, "run_pip", pip)
    out, tag = tmp_path / "out", "py3-none-any"
    first = build_wheelhouse(out, [OLD, NEW], add=["parser==4.9.*"], without=["engine"], say=quiet)
    assert "parser-4.9.3-py3-none-any.whl" in names(out)
    assert build_wheelhouse(out, [OLD, NEW], add=["parser==4.9.*"], without=["engine"], say=quiet) == first
    assert made == ["parser==4.9.*"]
    tag = "cp311-cp311-linux_x86_64"
    with pytest.raises(KitError, match="parser==4.8.* makes parser-4.9.3-cp311.*, which fits this machine and not K"):
        build_wheelhouse(out, [OLD], add=["parser==4.8.*"], say=quiet)


def test_tensorrt_is_fetched_into_its_folder_or_put_there_by_hand(shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        KitError, match=r"no wheel of tensorrt_cu12_libs==10.\*; .*pypi.nvidia.com in the environment, or"
    ):
        build_wheelhouse(out, [OLD], tensorrt="10.*", say=quiet)
    assert not names(out)
    made_wheel(shelf, "tensorrt-cu12-libs", "10.9.0", tag=f"py2.py3-none-{LINUX}", requires=["nvidia-runtime"])
    libraries = f"tensorrt/tensorrt_cu12_libs-10.9.0-py2.py3-none-{LINUX}.whl"
    for version in ("10.*", None):  # it stays, and stays recorded
        built = build_wheelhouse(out, [OLD], tensorrt=version, say=quiet)
        assert built.wheels[-1].file == libraries in names(out)
    made_wheel(out / "tensorrt", "tensorrt-cu12-libs", "11.0")
    with pytest.raises(
        KitError, match=r"tensorrt_cu12_libs-11.0.* is no wheel of TensorRT 10.x, which ONNX Runtime li"
    ):
        build_wheelhouse(out, [OLD], say=quiet)


def test_a_folder_of_other_things_is_left_alone(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(KitError, match="holds a wheelhouse and other files: 'thesis.txt'; move them"):
        build_wheelhouse(tmp_path / "out", [OLD], say=quiet)
    made_wheel(tmp_path / "other", "foreign")
    with pytest.raises(KitError, match="other files: 'foreign-1.0-py3-none-any.whl'; move them"):
        build_wheelhouse(tmp_path / "other", [OLD], say=quiet)
    assert names(tmp_path / "other") == ["foreign-1.0-py3-none-any.whl"]


def test_what_kaggle_would_rename_is_refused(shelf: Path) -> None:
    made_wheel(shelf, "local", "1.0+cu128")
    with pytest.raises(KitError, match=r"pip finds local-1.0\+cu128-py3-none-any.whl, which Kaggle would rename"):
        find_wheel("local", python="3.12")


def test_a_wheel_that_changes_on_the_way_is_refused(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(found: Found, folder: Path, *, python: str) -> Path:
        (folder / found.file).write_bytes(b"something else")
        return folder / found.file

    monkeypatch.setattr(wheelhouse, "fetch_wheel", changed)
    found = Found(file="flat-3.0-py3-none-any.whl", distribution="flat", version="3.0", requires=(), sha256="0" * 64)
    monkeypatch.setattr(wheelhouse, "find_wheel", lambda _requirement, *, python: found)
    with pytest.raises(KitError, match="flat-3.0-py3-none-any.whl arrived with another SHA-256"):
        build_wheelhouse(tmp_path / "out", [OLD], say=quiet)
    assert not names(tmp_path / "out")


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Found(file="flat-3.0-py3-none-any.whl", distribution="flat", version="3.0", requires=(), size_bytes=10**18)
    monkeypatch.setattr(wheelhouse, "find_wheel", lambda _requirement, *, python: found)
    with pytest.raises(KitError, match=r"1,000,000,000,000.0 MB are to be downloaded and .* are free; make room"):
        build_wheelhouse(tmp_path / "out", [OLD], say=quiet)


def test_the_same_image_twice_and_another_tensorrt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"profiles 'python3.12', 'python3.12' are not all different"):
        build_wheelhouse(tmp_path, [OLD, OLD], say=quiet)
    with pytest.raises(SettingError, match=r"TensorRT '11.\*' is no version 10.x"):
        build_wheelhouse(tmp_path, [OLD], tensorrt="11.*", say=quiet)


# ---- requirements against an image


def found_in(wheels: dict[str, tuple[str, ...]]) -> Callable[[str], Found]:
    """Return what finds these: {"name version": requirements}."""

    def find(requirement: str) -> Found:
        for known, requires in wheels.items():
            name, version = known.split()
            if requirement.startswith(name):
                file = f"{name}-{version}-py3-none-any.whl"
                return Found(file=file, distribution=name, version=version, requires=requires)
        pytest.fail(f"{requirement} was looked for")

    return find


@pytest.mark.parametrize(
    ("wheels", "brought"),
    [
        ({"a 1": ()}, ["a"]),
        ({"a 1": ("NumPy>=2", "torch>=2.10", "opencv-contrib-python>=4.10", "pyyaml")}, ["a"]),
        ({"a 1": ("b",), "b 1": ("c",), "c 1": ("a",)}, ["a", "b", "c"]),
        ({"a 1": ("b; python_version < '3.12'", "c; sys_platform == 'linux'"), "c 1": ()}, ["a", "c"]),
        ({"a 1": ("b[x]",), "b 1": ("c; extra == 'x'", "d; extra == 'y'"), "c 1": ()}, ["a", "b", "c"]),
        ({"a 1": ("b>=1", "b<3"), "b 2": ()}, ["a", "b"]),
    ],
)
def test_what_is_brought_is_closed_under_what_it_requires(
    wheels: dict[str, tuple[str, ...]], brought: list[str]
) -> None:
    found = resolve(
        OLD, ["a"], kit_requires=("numpy>=1.26", "onnx; extra == 'train'"), find=found_in(wheels), say=quiet
    )
    assert [one.distribution for one in found] == brought


@pytest.mark.parametrize(
    ("requirements", "wheels", "message"),
    [
        (["a ="], {}, r"'a =' is no requirement \(.*\); expected one such as 'ttach>=0.0.3'"),
        (["a @ https://example.org/a.whl"], {}, "gives an address; name a distribution of the index"),
        (["numpy"], {}, r"numpy: python3.12 has numpy 2.0.2, and a wheelhouse brings only what an image lacks"),
        (["PyArrow>=3"], {}, "python3.12 has pyarrow, and a wheelhouse brings only"),
        (["torchvision"], {}, "torchvision is asked for, and a wheelhouse never brings it"),
        (
            ["a"],
            {"a 1": ("nvidia-cudnn-cu12",)},
            "nvidia-cudnn-cu12 is required by a, and a wheelhouse never brings it",
        ),
        (
            ["a"],
            {"a 1": ("numpy>=2.3",)},
            "a requires numpy>=2.3, and python3.12 has 2.0.2; ask for another version of a",
        ),
        (
            ["a"],
            {"a 1": ("b<2", "b>=2"), "b 1": ()},
            "a requires b>=2, and 1 is brought to python3.12; ask for a version",
        ),
        (["a", "b<2", "b>=2"], {"a 1": (), "b 1": ()}, "--add requires b>=2, and 1 is brought"),
    ],
)
def test_what_contradicts_an_image_is_refused(
    requirements: list[str], wheels: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(KitError, match=message):
        resolve(OLD, requirements, kit_requires=(), find=found_in(wheels), say=quiet)


# ---- the index


def test_nothing_found_and_nothing_to_make_it_of_is_told_in_pip_s_words(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(
        KitError, match=r"no wheel of absent>=1 for Kaggle's Python, and pip cannot make one: ERROR: No m"
    ):
        build_wheelhouse(tmp_path / "out", [OLD], add=["absent>=1"], say=quiet)


def test_an_index_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch, shelf: Path) -> None:
    monkeypatch.setenv("PIP_CERT", str(shelf / "none.pem"))
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    with pytest.raises(KitError, match=r"pip cannot look for flat for Python 3.12: .*soon"):
        find_wheel("flat", python="3.12")


def test_a_python_without_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(KitError, match="has no pip, which finds and downloads wheels"):
        find_wheel("flat", python="3.12")


@pytest.mark.parametrize("address", ["ftp://example.org/a.whl", "http://127.0.0.1:9/a.whl"])
def test_a_size_that_nobody_tells_is_unknown(address: str) -> None:
    assert index._size_bytes(address) is None


# ---- the command, and what is published


def test_the_command_builds_it_and_lists_it(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "name: mine\ndate: 2026-11-01\npython: '3.12'\ncuda: '12.8'\nbrings: [engine]\n"
        "packages: {numpy: 2.0.2, opencv: '4.13', torch: 2.10.0, protobuf: 5.29.5}\nalso: [pyarrow, PyYAML]\n"
    )
    parser = argparse.ArgumentParser()
    add_wheelhouse_parsers(lambda _name, run, _purpose, _example: parser.set_defaults(run=run) or parser)
    options = parser.parse_args(["--out", str(tmp_path / "out"), "--profile", str(profile), "--without", "flat"])
    result, code = options.run(options)
    assert code == 0 and [wheel.distribution for wheel in result["wheels"]] == ["kaggle-kit", "engine"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"{tmp_path / 'out'}: 2 wheel(s), ")
    assert any(line.startswith(f"  {wheel_name()}: ") and line.endswith(", for mine") for line in lines)


def test_the_kit_s_wheel_is_small(tmp_path: Path) -> None:
    assert build_wheel(tmp_path).stat().st_size < 1_000_000


def test_the_published_dataset_has_the_metadata_that_a_new_one_gets() -> None:
    path = Path(__file__).parents[1] / "datasets" / "kaggle-kit-wheelhouse" / "dataset-metadata.json"
    assert json.loads(path.read_text()) == DATASET
