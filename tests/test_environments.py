from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from kaggle_kit.errors import RehearsalError
from kaggle_kit.platform import environments
from kaggle_kit.platform.environments import (
    ABOUT,
    find_interpreter,
    layer_environment,
    make_environment,
    profile_requirements,
)
from kaggle_kit.platform.profiles import ImageProfile, read_profile

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
WHEELS = {
    "numpy": "2.0.2",
    "pyarrow": "18.1.0",
    "opencv_python_headless": "4.13.0.92",
    "PyYAML": "6.0.4",
    "onnxruntime_gpu": "1.24.4",
}


def profile(python: str = HERE, **versions: str) -> ImageProfile:
    packages = {"numpy": "2.0.2", "opencv": "4.13"} | versions
    return ImageProfile(name="mine", date="2026-11-01", python=python, cuda="12.8", packages=packages)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of nothing, under the names of what the kernel's side imports."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in WHEELS.items():
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name.lower()}.py": f"__version__ = {version!r}\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
    return folder


@pytest.fixture
def offline(wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let pip find these wheels and nothing else, and no uv."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    (tmp_path / "programs").mkdir()


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def said_by(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_an_environment_has_the_image_s_versions_and_is_made_once(offline: None, tmp_path: Path) -> None:
    lines: list[str] = []
    python = make_environment(profile(), tmp_path / "mine", say=lines.append)
    assert "once, like mine: numpy==2.0.2, pyarrow, opencv-python-headless==4.13.*, PyYAML" in lines[0]
    assert lines[1:] == [
        "mine does not tell its version of pyarrow; here it is 18.1.0",
        "mine does not tell its version of PyYAML; here it is 6.0.4",
    ]
    assert said_by(python, "import numpy, pyarrow, sys; print(numpy.__version__, sys.prefix)").split() == [
        "2.0.2",
        str(tmp_path / "mine"),
    ]
    lines.clear()
    assert make_environment(profile(), tmp_path / "mine", say=lines.append) == python
    assert lines == []
    installed = tmp_path / "mine" / "lib" / f"python{HERE}" / "site-packages" / "numpy-2.0.2.dist-info"
    installed.rename(installed.with_name("numpy-2.1.0.dist-info"))
    make_environment(profile(), tmp_path / "mine", say=lines.append)
    assert lines[0].startswith("making") and installed.is_dir()


def test_a_layer_takes_what_a_kernel_installs(offline: None, tmp_path: Path) -> None:
    below = make_environment(profile(), tmp_path / "mine", say=lambda _line: None)
    layer = layer_environment(below, tmp_path / "layer")
    subprocess.run([layer, "-m", "pip", "install", "-q", "--no-deps", "onnxruntime-gpu"], check=True)
    assert said_by(layer, "import numpy, onnxruntime_gpu as o; print(o.__version__)") == "1.24.4"
    with pytest.raises(subprocess.CalledProcessError):
        said_by(below, "import onnxruntime_gpu")
    lines: list[str] = []
    make_environment(profile(), tmp_path / "mine", say=lines.append)
    assert lines == []
    fresh = layer_environment(below, tmp_path / "layer")
    with pytest.raises(subprocess.CalledProcessError):
        said_by(fresh, "import onnxruntime_gpu")


def test_what_a_killed_process_left_is_made_anew(offline: None, tmp_path: Path, monkeypatch) -> None:
    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(environments, "_install", die)
        make_environment(profile(), tmp_path / "mine", say=lambda _line: None)
    assert json.loads((tmp_path / "mine" / ABOUT).read_text())["installed"] is None
    python = make_environment(profile(), tmp_path / "mine", say=lambda _line: None)
    assert said_by(python, "import numpy; print(numpy.__version__)") == "2.0.2"


def test_of_two_processes_one_waits_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_is_whole", lambda *_arguments: True)
    waits, lines = threading.Event(), []

    def say(line: str) -> None:
        lines.append(line)
        waits.set()

    with environments._alone(tmp_path / "mine", lines.append):
        second = threading.Thread(target=lambda: make_environment(profile(), tmp_path / "mine", say=say))
        second.start()
        assert waits.wait(20)
        assert second.is_alive()
    second.join(20)
    assert lines == [f"another process is making {tmp_path / 'mine'}; waiting for it"]


@pytest.mark.parametrize("uv", [None, "echo 'error: no route to host' >&2; exit 2"])
def test_a_package_that_is_not_to_be_had_is_named(offline: None, tmp_path: Path, uv: str | None) -> None:
    lines: list[str] = []
    if uv:
        program(tmp_path / "programs" / "uv", uv)
    with pytest.raises(RehearsalError, match=r"^numpy==9.9.9 cannot be installed for mine \(.{,200}\); check the net"):
        make_environment(profile(numpy="9.9.9"), tmp_path / "mine", say=lines.append)
    assert lines[1:] == (["uv: error: no route to host; trying pip"] if uv else [])


def test_uv_installs_where_it_is_there(offline: None, tmp_path: Path) -> None:
    pip = 'shift 2; shift; python="$1"; shift; exec "$python" -m pip install -q "$@"'
    program(tmp_path / "programs" / "uv", f'echo "$@" > {tmp_path}/asked; {pip}')
    make_environment(profile(), tmp_path / "mine", say=lambda _line: None)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["pip", "install", "--python"] and "numpy==2.0.2" in asked


def test_folders_of_other_things_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(RehearsalError, match="is not empty and no environment of kaggle-kit; choose another folder"):
        make_environment(profile(), tmp_path, say=print)
    with pytest.raises(RehearsalError, match=r"mine.txt/env cannot be made \(File exists\)"):
        make_environment(profile(), tmp_path / "mine.txt" / "env", say=print)


def test_the_profiles_versions_are_asked_for() -> None:
    assert profile_requirements(read_profile("python3.12")) == [
        "numpy==2.0.2",
        "pyarrow==18.1.0",
        "opencv-python-headless==4.13.*",
        "PyYAML",
    ]
    assert profile_requirements(profile(opencv="5.0.0.93+cu128", PyYAML="6.0.4"))[2:] == [
        "opencv-python-headless==5.0.0.93",
        "PyYAML==6.0.4",
    ]


PYTHON = "echo 3.99"
BROKEN = "echo 'pyenv: python3.99: command not found' >&2; exit 127"


@pytest.mark.parametrize(
    ("programs", "found"),
    [
        ({"one/python3.99": PYTHON, "two/python3.99": PYTHON}, "one/python3.99"),
        ({"one/python3.99": BROKEN, "two/python3.99": PYTHON}, "two/python3.99"),
        ({"one/python3.99": "echo 3.98", "versions/3.99.2/bin/python": PYTHON}, "versions/3.99.2/bin/python"),
        (
            {f"versions/{name}/bin/python": PYTHON for name in ("3.99.9", "3.99.10", "3.99.0rc1", "3.98.11")},
            "versions/3.99.10/bin/python",
        ),
        ({"one/uv": 'echo "$0" | sed s/uv$/other/', "one/other": PYTHON}, "one/other"),
    ],
)
def test_an_interpreter_is_found_without_being_told(
    programs: dict[str, str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in programs.items():
        program(tmp_path / name, script)
    monkeypatch.setenv("PATH", os.pathsep.join([f"{tmp_path}/one", f"{tmp_path}/two", "/usr/bin", "/bin"]))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_interpreter("3.99") == tmp_path / found


def test_an_interpreter_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(RehearsalError, match=r"no Python 3.99 .*`uv python install 3.99` or `pyenv install 3.99`"):
        find_interpreter("3.99")
    assert find_interpreter(HERE) == Path(sys.executable)
