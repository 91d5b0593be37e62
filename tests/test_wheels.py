"""Attached wheels: which is taken, that it is the one recorded, and that it is really importable afterwards."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_wheels import made_wheel

from kaggle_kit.errors import KitError
from kaggle_kit.runtime import wheels as module
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.runtime.mounts import ROOT_VARIABLE
from kaggle_kit.runtime.wheelhouse import (
    RECORD,
    Image,
    Wheel,
    Wheelhouse,
    normal_name,
    parse_name,
    read_wheelhouse,
    write_wheelhouse,
)
from kaggle_kit.runtime.wheels import find_attached, install_attached

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OWN = f"cp{sys.version_info.major}{sys.version_info.minor}"
LINUX = "manylinux_2_17_" + sysconfig.get_platform().rpartition("-")[2]
HOUSE = "datasets/owner/house"


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of inputs; nothing is installed into this environment, and all is forgotten afterwards."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "kaggle"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(module, "_is_writable", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    module._temporary_folder.cache_clear()
    yield tmp_path / "kaggle" / "input"
    module._temporary_folder.cache_clear()
    importlib.invalidate_caches()


def record(folder: Path, *, pythons: dict[str, str] | None = None) -> None:
    """Write the record of the wheels in a folder; `pythons` names the Python each is for."""
    images = {
        f"python{python}": Image(python=python, date="2026-11-01") for python in {HERE, *(pythons or {}).values()}
    }
    found = []
    for path in sorted(folder.rglob("*.whl")):
        name = parse_name(path.name)
        python = (pythons or {}).get(path.name, HERE)
        found.append(
            Wheel(
                file=path.relative_to(folder).as_posix(),
                distribution=name.distribution,
                version=name.version,
                sha256=file_sha256(path),
                size_bytes=path.stat().st_size,
                profiles=(f"python{python}",),
            )
        )
    write_wheelhouse(Wheelhouse(kit="1.0", profiles=images, wheels=tuple(found)), folder)


@pytest.mark.parametrize("layout", [HOUSE, "house", "notebooks/owner/house"])
def test_a_module_and_what_it_requires_are_installed_and_found_by_children_too(mounts: Path, layout: str) -> None:
    name = f"ballast_{layout.count('/')}{len(layout)}"  # a module that is imported stays so
    house = mounts / layout
    made_wheel(house, name, requires=[f"{name}-gravel>=1", "numpy", 'absent; extra == "all"', "elsewhere"])
    made_wheel(house, f"{name}-gravel")
    made_wheel(house, "unasked")
    record(house)
    said: list[str] = []
    installed = install_attached([name], say=said.append)
    assert [path.name.split("-")[0] for path in installed] == [name, f"{name}_gravel"]
    assert importlib.import_module(name).VERSION == "1.0"
    (line,) = said
    assert line.startswith(f"installed {normal_name(name)} 1.0, {normal_name(name)}-gravel 1.0 by pip into ")
    code = f"import {name}, {name}_gravel; print({name}.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.startswith(tempfile.gettempdir())
    assert importlib.util.find_spec("unasked") is None
    assert install_attached([name], say=said.append) == () and len(said) == 1


def test_what_is_importable_is_left_alone(mounts: Path) -> None:
    made_wheel(mounts / HOUSE, "numpy", "99.0")
    assert install_attached(["numpy", "cv2"], say=pytest.fail) == ()


@pytest.mark.parametrize(
    ("nvidia", "there", "taken"),
    [
        (True, ("onnxruntime", "onnxruntime_gpu"), "onnxruntime_gpu"),
        (False, ("onnxruntime", "onnxruntime_gpu"), "onnxruntime"),
        (False, ("onnxruntime_gpu",), "onnxruntime_gpu"),
        (True, ("onnxruntime",), "onnxruntime"),
    ],
)
def test_onnxruntime_s_wheel_goes_by_the_machine(
    mounts: Path, monkeypatch: pytest.MonkeyPatch, nvidia: bool, there: Sequence[str], taken: str
) -> None:
    for name in there:
        made_wheel(mounts / HOUSE, name, tag=f"{OWN}-{OWN}-{LINUX}")
    monkeypatch.setattr(module, "_has_nvidia", lambda: nvidia)
    said: list[str] = []
    found = module._choose("onnxruntime", find_attached(), said.append)
    assert found.path.name.split("-")[0] == taken
    assert [line[:22] for line in said] == ["WARNING there is a GPU"] * (nvidia and taken == "onnxruntime")


def test_a_driver_is_known_by_its_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert module._has_nvidia()


def test_the_newest_wheel_for_this_python_is_taken(mounts: Path) -> None:
    house = mounts / HOUSE
    for version in ("0.9", "0.10", "0.11"):
        made_wheel(house, "ballast", version)
    assert module._newest("ballast", find_attached()).name.version == "0.11"
    record(house, pythons={"ballast-0.11-py3-none-any.whl": "9.9"})
    assert module._newest("ballast", find_attached()).name.version == "0.10"


def test_onnxruntime_for_cuda_12_goes_before_a_newer_one(mounts: Path) -> None:
    for version in ("1.24.4", "1.26.0", "1.27.1"):
        made_wheel(mounts / HOUSE, "onnxruntime-gpu", version)
    assert module._newest("onnxruntime-gpu", find_attached()).name.version == "1.26.0"


def test_tensorrt_lies_in_a_folder_and_must_be_the_line_that_onnxruntime_links(mounts: Path) -> None:
    made_wheel(mounts / HOUSE / "tensorrt", "tensorrt-cu12-libs", "11.1")
    with pytest.raises(
        KitError, match=r"no wheel of tensorrt-cu12-libs 10.x .*'tensorrt_cu12_libs-11.1.*--tensorrt` b"
    ):
        install_attached(["tensorrt_libs"])
    made_wheel(mounts / HOUSE / "tensorrt", "tensorrt-cu12-libs", "10.9")
    record(mounts / HOUSE)
    assert module._choose("tensorrt_libs", find_attached(), print).name.version == "10.9"


def test_only_attached_folders_are_looked_into(mounts: Path) -> None:
    for place in ("competitions/shipment", "datasets/owner/house/deep", "datasets/owner/house/a/b", "datasets"):
        made_wheel(mounts / place, "hidden")
    (mounts / HOUSE / "notes.txt").write_text("")
    (mounts / HOUSE / "oddly-named.whl").write_text("")
    assert [wheel.path.parent.name for wheel in find_attached()] == ["datasets"]


@pytest.mark.parametrize(
    ("file", "fits"),
    [
        ("a-1.0-py3-none-any.whl", True),
        ("a-1.0-1-py2.py3-none-any.whl", True),
        (f"a-1.0-{OWN}-{OWN}-{LINUX}.whl", True),
        (f"a-1.0-{OWN}-none-any.whl", True),
        (f"a-1.0-cp37-abi3-{LINUX}.whl", True),
        (f"a-1.0-cp399-abi3-{LINUX}.whl", False),
        (f"a-1.0-{OWN}-{OWN}t-{LINUX}.whl", False),
        (f"a-1.0-cp27-cp27m-{LINUX}.whl", False),
        ("a-1.0-py2-none-any.whl", False),
        (f"a-1.0-{OWN}-{OWN}-win_amd64.whl", False),
        (f"a-1.0-{OWN}-{OWN}-manylinux_2_17_s390x.whl", False),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="kernels run on Linux")
def test_names_say_what_a_wheel_fits(file: str, fits: bool) -> None:
    assert parse_name(file).fits_here() is fits


@pytest.mark.parametrize("file", ["a-1.0.tar.gz", "a-1.0-any.whl", "a.whl", "a-1.0-py3-none-any.zip"])
def test_what_is_named_otherwise_is_no_wheel(file: str) -> None:
    assert parse_name(file) is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made_wheel(tmp_path, "ballast")
    record(tmp_path)
    wheelhouse = read_wheelhouse(tmp_path)
    assert wheelhouse.pythons_of(wheelhouse.wheels[0]) == (HERE,)
    write_wheelhouse(wheelhouse, tmp_path)
    assert read_wheelhouse(tmp_path) == wheelhouse
    assert json.loads((tmp_path / RECORD).read_text())["kind"] == "wheelhouse"


def test_what_is_wrong_with_attached_wheels_is_said(mounts: Path) -> None:
    house = mounts / HOUSE
    with pytest.raises(
        KitError, match="no wheel of ballast for Python .* attached; no wheel at all is there; attach the"
    ):
        install_attached(["ballast"])
    made_wheel(house, "ballast", tag=f"cp27-cp27m-{LINUX}")
    made_wheel(house, "other")
    with pytest.raises(KitError, match=rf"; 'ballast-1.0-cp27-cp27m-{LINUX}.whl' is there; attach"):
        install_attached(["ballast"])
    path = made_wheel(house, "ballast")
    record(house)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(KitError, match=r"is not the wheel that wheelhouse.json tells of: its SHA-256 .*build it again"):
        install_attached(["ballast"])
    path.write_bytes(b"cut short")
    with pytest.raises(KitError, match=r"ballast-1.0-py3-none-any.whl is no whole wheel \(File is not a zip file\)"):
        install_attached(["ballast"])
    (house / RECORD).write_text('{"format": 2}')
    with pytest.raises(KitError, match=r"wheelhouse.json does not read \(.*\); build it again with"):
        install_attached(["ballast"])


def test_a_wheel_without_its_module_is_found_out(mounts: Path) -> None:
    made_wheel(mounts / HOUSE, "ballast", module="something_else")
    with pytest.raises(
        KitError, match="`import ballast` finds nothing, though 'ballast-1.0-py3-none-any.whl' was inst"
    ):
        install_attached(["ballast"], say=lambda _: None)


@pytest.mark.parametrize(
    ("tools", "refusing", "used", "target"),
    [
        (("uv", "pip"), (), "uv", False),
        (("pip",), (), "pip", False),
        (("uv", "pip"), ("uv",), "pip", False),
        (("uv",), ("environment",), "uv", True),
        (("uv", "pip"), ("uv", "pip"), "", False),
        ((), (), "", False),
    ],
)
def test_whichever_installer_works_is_used_offline_and_alone(
    mounts: Path,
    monkeypatch: pytest.MonkeyPatch,
    tools: Sequence[str],
    refusing: Sequence[str],
    used: str,
    target: bool,
) -> None:
    """Nothing is run: what would be is recorded."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        tool = "uv" if command[0] == "/bin/uv" else "pip"
        refused = tool in refusing or ("environment" in refusing and "--target" not in command)
        return subprocess.CompletedProcess(command, int(refused), "", "error: externally managed\n" * refused)

    made_wheel(mounts / HOUSE, "ballast")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: ("pip" in tools or None) if name == "pip" else find(name)
    )
    monkeypatch.setattr(module, "_is_writable", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in tools else None)
    monkeypatch.setattr(subprocess, "run", run)
    said: list[str] = []
    attached = find_attached()
    if used:
        module._install(attached, said.append)
        assert (f"by {used}" in said[0], " into " in said[0]) == (True, target)
        assert ("before, " in said[0]) == bool(refusing)
        assert all("--no-index" in command and "--no-deps" in command for command in commands)
    else:
        message = (
            "uv said: error: externally managed; pip said: .*; uv --target said: " if tools else "neither uv nor pip"
        )
        with pytest.raises(KitError, match=f"ballast 1.0 cannot be installed: {message}"):
            module._install(attached, said.append)
