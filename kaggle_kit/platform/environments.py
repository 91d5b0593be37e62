"""Python environments at home with the versions that Kaggle's image has of what the kernel's side imports.

numpy, pyarrow, OpenCV and PyYAML alone: a kernel installs onnxruntime from its attached wheels there as here, and
brings the kit along. An environment is made once, which needs the network; a rehearsal runs in a layer on top of it,
so that whatever its kernel installs is gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kaggle_kit.errors import RehearsalError, brief
from kaggle_kit.files import lock, replacing
from kaggle_kit.platform.profiles import ImageProfile
from kaggle_kit.settings import fingerprint

# What the kernel's side imports, as profiles call it and as it is installed.
KERNEL_SIDE = {
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "opencv": "opencv-python-headless",
    "pyyaml": "PyYAML",
}
ABOUT = "kaggle-kit-environment.json"  # without `installed` until all is there
FORMAT = 1
# They would lead the environment's own Python and pip elsewhere.
NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_PYTHON")
# Without `ensurepip`, as Debian's Python may be, it could not make an environment with pip.
_PROBE = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
PROBE_S = 20


def make_environment(profile: ImageProfile, folder: Path, *, say: Callable[[str], object]) -> Path:
    """Make a virtual environment with an image's Python and its versions of what the kernel's side imports.

    One that is there is used again as long as it holds what was installed and the profile asks for the same; what a
    killed process left unfinished is made anew. Of two processes, one makes it and the other waits.

    Args:
        profile: The image.
        folder: The environment; absent, empty, or an earlier one.
        say: Where lines go.

    Returns:
        The environment's interpreter.

    Raises:
        RehearsalError: When the folder holds something else, this machine has no such Python, or a package cannot be
            installed.
    """
    folder = folder.absolute()
    requirements = profile_requirements(profile)
    key = fingerprint({"python": profile.python, "requirements": requirements})
    with _alone(folder, say):
        if _is_whole(folder, key):
            return interpreter_of(folder)
        _clear(folder)
        base = find_interpreter(profile.python)
        say(f"making {folder} once, like {profile.name}: {', '.join(requirements)}; this needs the network")
        _write_about(folder, key, installed=None)
        _run([base, "-m", "venv", folder], f"{base} cannot make a virtual environment in {folder}")
        _install(interpreter_of(folder), requirements, profile, say)
        installed = _installed(folder)
        for name in _unpinned(profile):
            say(f"{profile.name} does not tell its version of {name}; here it is {installed[_canonical(name)]}")
        _write_about(folder, key, installed=installed)
    return interpreter_of(folder)


def layer_environment(python: Path, folder: Path) -> Path:
    """Make an empty environment on top of another, which is not changed by what is installed here.

    Args:
        python: The interpreter of the environment below.
        folder: The new environment; it is replaced.

    Returns:
        Its interpreter, which imports all that the environment below has.

    Raises:
        RehearsalError: When it cannot be made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    _run([python, "-m", "venv", "--without-pip", folder], f"{python} cannot make an environment in {folder}")
    below = _packages_folder(python.parents[1])
    (_packages_folder(folder) / "below.pth").write_text(f"{below}\n", encoding="utf-8")
    return interpreter_of(folder)


def profile_requirements(profile: ImageProfile) -> list[str]:
    """Return what pip is asked for, such as `numpy==2.0.2`; without a version where the profile tells none."""
    versions = _versions(profile)
    return [f"{name}{_pin(versions[key])}" if key in versions else name for key, name in KERNEL_SIDE.items()]


def find_interpreter(version: str) -> Path:
    """Return a Python of a version such as `3.12`: this one, from PATH, from pyenv, or one that uv knows.

    Raises:
        RehearsalError: When there is none that can make environments.
    """
    for path in _interpreters(version):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [path, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=PROBE_S, env=_environment()
            )
            if done.stdout.strip() == version:
                return path
    raise RehearsalError(
        f"there is no Python {version} with venv and ensurepip here (looked on PATH, in {_pyenv_versions()} and with "
        f"uv); get one with `uv python install {version}` or `pyenv install {version}`"
    )


def interpreter_of(folder: Path) -> Path:
    """Return where an environment's interpreter lies."""
    return folder / "bin" / "python"


def _interpreters(version: str) -> Iterator[Path]:
    """Yield what may be a Python of this version, the nearest first; pyenv's stand-ins on PATH may be none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield Path(sys.executable)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and (path := Path(folder, f"python{version}")).is_file():
            yield path
    found = _pyenv_versions().glob(f"{version}.*/bin/python")
    yield from sorted(found, key=lambda path: (_patch(path), str(path)), reverse=True)
    if uv := shutil.which("uv"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [uv, "python", "find", "--no-project", version]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROBE_S)
            yield Path(done.stdout.strip())


def _pyenv_versions() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"


def _patch(path: Path) -> int:
    """Return the 12 of `3.13.12`, and -1 where there is no such number: `3.13-dev`, `3.13.0rc1`."""
    patch = path.parents[1].name.split(".")[-1]
    return int(patch) if patch.isdigit() else -1


def _versions(profile: ImageProfile) -> dict[str, str]:
    """Return {package as `KERNEL_SIDE` calls it: version there}."""
    return {_canonical(name): version for name, version in profile.packages.items() if _canonical(name) in KERNEL_SIDE}


def _unpinned(profile: ImageProfile) -> list[str]:
    return [name for key, name in KERNEL_SIDE.items() if key not in _versions(profile)]


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def _pin(version: str) -> str:
    """Return `==2.0.2`, and `==4.13.*` where a version is known in part."""
    public = version.partition("+")[0]
    return f"=={public}" if public.count(".") >= 2 else f"=={public}.*"


# What is there


def _is_whole(folder: Path, key: str) -> bool:
    """Return whether an environment was finished, for the same requirements, and still holds what was installed."""
    about = _read_about(folder)
    if about.get("key") != key or not interpreter_of(folder).exists():
        return False
    return bool(about.get("installed")) and about["installed"] == _installed(folder)


def _installed(folder: Path) -> dict[str, str]:
    """Return {distribution: version} of an environment, from the names of its folders."""
    found = (path.stem.rpartition("-") for path in _packages_folder(folder).glob("*.dist-info"))
    return {_canonical(name): version for name, _, version in sorted(found)}


def _packages_folder(folder: Path) -> Path:
    """Return an environment's site-packages; a folder that is not there where it has none."""
    return next(folder.glob("lib/python*/site-packages"), folder / "lib" / "site-packages")


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) and about.get("format") == FORMAT else {}


def _write_about(folder: Path, key: str, *, installed: dict[str, str] | None) -> None:
    with replacing(folder / ABOUT) as temporary:
        about = {"format": FORMAT, "key": key, "installed": installed}
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove an earlier environment; refuse anything else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise RehearsalError(f"{folder} is not empty and no environment of kaggle-kit; choose another folder")
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise RehearsalError(f"{folder} cannot be written ({error.strerror or error}); choose another folder") from None


@contextlib.contextmanager
def _alone(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Keep other processes from making this environment meanwhile."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RehearsalError(f"{folder} cannot be made ({error.strerror or error}); choose another folder") from None
    try:
        if lock(handle, wait=False) == "another's":
            say(f"another process is making {folder}; waiting for it")
            lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


# Installing


def _install(python: Path, requirements: list[str], profile: ImageProfile, say: Callable[[str], object]) -> None:
    """Install by uv where it is there; where it does not get through, by pip, which may know a mirror."""
    if uv := shutil.which("uv"):
        done = _call([uv, "pip", "install", "--python", python, *requirements])
        if done.returncode == 0:
            return
        say(f"uv: {_reason(done, requirements)[1]}; trying pip")
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--prefer-binary",
    ]
    done = _call([*pip, *requirements])
    if done.returncode:
        failed, reason = _reason(done, requirements)
        raise RehearsalError(
            f"{failed} cannot be installed for {profile.name} ({reason}); check the network, which is needed once, "
            "and the profile's version"
        )


def _reason(done: subprocess.CompletedProcess[str], requirements: Sequence[str]) -> tuple[str, str]:
    """Return which requirement an installer failed at, as far as it says, and its last words."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    marked = [line for line in lines if line.lower().startswith(("error", "cause", "x no solution"))] or lines[-2:]
    said = " ".join(marked)
    failed = [name for name in requirements if name in said] or [
        name for name in requirements if name.partition("==")[0].lower() in said.lower()
    ]
    return ", ".join(failed or requirements), brief(RuntimeError(marked[-1] if marked else f"exit {done.returncode}"))


def _run(command: Sequence[str | Path], what: str) -> None:
    done = _call(command)
    if done.returncode:
        raise RehearsalError(f"{what}: {_reason(done, [])[1]}; mend or reinstall that Python")


def _call(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
