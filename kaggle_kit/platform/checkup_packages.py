"""The doctor's look at Python, at packages against the profiles of Kaggle's images, and at the kit's extras."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import kaggle_kit
from kaggle_kit.errors import some_of
from kaggle_kit.platform.attached import Wheel
from kaggle_kit.platform.findings import Finding
from kaggle_kit.platform.probe import Tried
from kaggle_kit.platform.profiles import ImageProfile
from kaggle_kit.platform.surroundings import CALLING_HOME, Surroundings

PYTHONS = ("3.11", "3.12", "3.13")
MATTERING = ("numpy", "opencv", "pyarrow", "onnxruntime")  # what a submission is made with
Differences = Mapping[str, str]

_WAITS = {"albumentations": "63 s an import", "huggingface-hub": "timm's pretrained=True"}
_MODULES = {"cv2": "opencv-python-headless", "yaml": "PyYAML"}


def check_python(here: Surroundings) -> Iterator[Finding]:
    """Yield whether the kit is tried on this Python."""
    known = here.python_minor in PYTHONS
    if known:
        yield Finding(level="green", what="Python", found=here.python)
        return
    older = tuple(map(int, here.python_minor.split("."))) < (3, 11)
    kaggle = "notebook editor, Settings, Environment: choose the latest, or pin the original one"
    yield Finding(
        level="red" if older else "yellow",
        what="Python",
        found=f"{here.python}, {'too old' if older else 'which the kit was not tried on'}",
        expected=f"{PYTHONS[0]} to {PYTHONS[-1]}",
        repair=kaggle if here.on_kaggle else "make an environment of Python 3.12: uv venv --python 3.12",
    )


def check_kit(here: Surroundings, wheels: Sequence[Wheel]) -> Iterator[Finding]:
    """Yield which kit this is, and whether another one is attached as well."""
    own = [wheel for wheel in wheels if wheel.name == "kaggle-kit"]
    others = sorted({wheel.version for wheel in own} - {kaggle_kit.__version__})
    if others:
        yield Finding(
            level="yellow",
            what="kaggle_kit",
            found=f"{kaggle_kit.__version__} from {here.kit}, and {', '.join(others)} is attached too",
            expected="one version",
            repair="in Input, remove the older one, or use its menu's 'Check for updates'",
        )
        return
    yield Finding(level="green", what="kaggle_kit", found=f"{kaggle_kit.__version__} from {here.kit}")


def check_profile(
    here: Surroundings, profiles: Mapping[str, ImageProfile], tried: Tried, *, asked: bool
) -> Iterator[Finding]:
    """Yield how this Python's packages differ from those of Kaggle's images.

    Args:
        here: What is here.
        profiles: The images that are known.
        tried: What `try_runtime` told: what is imported really.
        asked: Whether the one profile was asked for by name.
    """
    modules = {"numpy": "numpy", "cv2": "opencv", "pyarrow": "pyarrow"}
    real = {
        modules[step["module"]]: step["version"]
        for step in tried.steps
        if step["step"] == "import" and step["module"] in modules and "version" in step
    }
    if not here.on_kaggle:
        for name, profile in profiles.items():
            yield _compare_home(here, name, profile, real)
        return
    own = {name: profile for name, profile in profiles.items() if profile.python == here.python_minor}
    candidates = profiles if asked else own or profiles
    distances = {name: _differences(here, profile, real) for name, profile in candidates.items()}
    nearest = min(distances, key=lambda name: len(distances[name]))
    yield _compare_image(here, candidates[nearest], distances[nearest])


def _compare_image(here: Surroundings, profile: ImageProfile, differences: Differences) -> Finding:
    name = f"{profile.name} of {profile.date}"
    others = [f"{one} {here} (there {profile.packages[one]})" for one, here in differences.items() if here]
    lacking = [one for one, here in differences.items() if not here]
    parts = [", ".join(others)] if others else []
    parts += [f"not here: {some_of(lacking)}"] if lacking else []
    if profile.python != here.python_minor:
        parts.insert(0, f"Python {here.python_minor} (there {profile.python})")
    if not parts:
        number = len(profile.packages)
        return Finding(level="green", what="image", found=f"{name}: all {number} versions that it knows are here")
    return Finding(
        level="yellow",
        what="image",
        found=f"nearest to {name}, but for {'; '.join(parts)}",
        repair="where the golden images below are right, it does no harm; to rehearse in this image at home, write a "
        "profile of it",
    )


def _compare_home(here: Surroundings, asked_by: str, profile: ImageProfile, real: Mapping[str, str]) -> Finding:
    """Say in what home differs from an image, as far as a submission may notice."""
    there = {name: profile.packages[name] for name in MATTERING if name in profile.packages}
    brought = re.search(r"onnxruntime(?:-gpu)?==([\d.]+\d)", " ".join(profile.brings))
    if brought:
        there["onnxruntime"] = brought[1]
    versions = dict(real)
    if here.runtimes:
        versions["onnxruntime"] = here.packages[here.runtimes[0]]
    differing = [
        f"{name} {versions[name]} (there {version})"
        for name, version in there.items()
        if name in versions and _minor(versions[name]) != _minor(version)
    ]
    what = f"image {profile.name}"
    if not differing:
        return Finding(level="green", what=what, found=f"{', '.join(there)} are of the same releases here")
    return Finding(
        level="yellow",
        what=what,
        found=f"others here: {', '.join(differing)}",
        repair="before submitting, rehearse in its versions: kaggle-kit rehearse KERNEL --task TASK --data DATA "
        f"--hidden DIR --bundle DIR --packages-from {asked_by}",
    )


def _differences(here: Surroundings, profile: ImageProfile, real: Mapping[str, str]) -> Differences:
    """Return {package: how it is here}, of those that are not as in the profile; nothing where one is not here."""
    found = {}
    for name, version in profile.packages.items():
        versions = here.opencvs if name == "opencv" else (here.packages.get(name, ""),)
        versions = (real[name],) if name in real else versions
        if not any(_is_version(one, version) for one in versions):
            found[name] = " and ".join(sorted(versions))
    return found


def _is_version(found: str, expected: str) -> bool:
    """Return whether a version is the expected one, or one of its releases where that says less."""
    public, _, local = found.partition("+")
    expected_public, _, expected_local = expected.partition("+")
    same = public == expected_public or public.startswith(f"{expected_public}.")
    return same and (not local or not expected_local or local == expected_local)


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def check_imports(here: Surroundings, tried: Tried) -> Iterator[Finding]:
    """Yield whether what a submission needs can be imported; ONNX Runtime is another finding."""
    steps = [step for step in tried.steps if step["step"] == "import" and step["module"] != "onnxruntime"]
    broken = [step for step in steps if "error" in step]
    for step in broken:
        again = "--reinstall" if here.installer == "uv pip" else "--force-reinstall"
        home = here.install(again, _MODULES.get(step["module"], step["module"]))
        yield Finding(
            level="red",
            what=step["module"],
            found=f"does not import: {step['error']}",
            repair="restart the session; if it stays, take back what you installed over Kaggle's image"
            if here.on_kaggle
            else home,
        )
    if steps and not broken:
        versions = ", ".join(f"{step['module']} {step['version']}" for step in steps)
        yield Finding(level="green", what="packages", found=f"{versions} import")


def check_protobuf(here: Surroundings, imported: str | None) -> Iterator[Finding]:
    """Yield whether the protobuf that is imported already is the one that is installed.

    Args:
        here: What is here.
        imported: Its version; None where nobody has imported it: Kaggle's image does before any code of yours.
    """
    installed = here.packages.get("protobuf")
    if not imported or not installed:
        return
    if imported == installed:
        yield Finding(level="green", what="protobuf", found=f"{imported}, imported before your code")
        return
    yield Finding(
        level="yellow",
        what="protobuf",
        found=f"{installed} is installed, {imported} was imported before your code and is the one in use",
        repair=here.install("protobuf") + f"=={imported}"
        if not here.on_kaggle
        else f"restart the session; if it stays, do not install protobuf there: the image forces {imported}",
    )


def check_calls_home(here: Surroundings) -> Iterator[Finding]:
    """Yield which libraries would wait for the internet in a submission."""
    if not here.on_kaggle:
        return
    asking = [name for name, variable in CALLING_HOME.items() if name in here.packages]
    asking = [name for name in asking if CALLING_HOME[name] not in here.variables]
    if not asking:
        yield Finding(level="green", what="calls home", found="no library that is here waits for the internet")
        return
    costs = [f"{name} ({_WAITS[name]})" for name in asking]
    settings = ", ".join(f'{CALLING_HOME[name]}="1"' for name in asking)
    yield Finding(
        level="yellow",
        what="calls home",
        found=f"without internet these wait, if your code imports them: {', '.join(costs)}",
        repair=f"first line of the notebook: import os; os.environ.update({settings})",
    )


def check_extras(here: Surroundings) -> Iterator[Finding]:
    """Yield which of the kit's extras are installed, and which only in part."""
    if here.on_kaggle or not here.requirements:
        return
    extras: dict[str, list[str]] = {}
    for line in here.requirements:
        found = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        if found:
            extras.setdefault(found[1], []).append(line.split(";")[0].strip())
    lacking = {name: [line for line in lines if _name(line) not in here.packages] for name, lines in extras.items()}
    whole = [name for name in extras if not lacking[name]]
    absent = [name for name, lines in extras.items() if lines[0] in lacking[name]]
    partial = [name for name in extras if name not in (*whole, *absent)]
    for name in partial:
        yield Finding(
            level="yellow",
            what=f"extra [{name}]",
            found=f"installed but for {', '.join(_name(line) for line in lacking[name])}",
            repair=here.install(*lacking[name]),
        )
    others = f"; not installed: {', '.join(absent)}" if absent else ""
    yield Finding(level="green", what="extras", found=f"{', '.join(whole) or 'none'}{others}")


def check_installer(here: Surroundings) -> Iterator[Finding]:
    """Yield what installs packages here."""
    if here.installer:
        yield Finding(level="green", what="installer", found=here.installer)
        return
    yield Finding(
        level="yellow",
        what="installer",
        found="neither pip nor uv is here, so no wheel can be installed",
        repair="python -m ensurepip",
    )


def _name(requirement: str) -> str:
    """Return the distribution that a requirement names, lower case and with dashes."""
    return re.sub(r"[._]", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
