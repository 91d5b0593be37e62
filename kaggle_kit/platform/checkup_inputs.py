"""The doctor's look at what a kernel reads: what is attached, the bundle, and the kernel's own folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import kaggle_kit
from kaggle_kit.errors import DataError, brief, some_of
from kaggle_kit.platform.attached import Wheel, attached_folders
from kaggle_kit.platform.findings import Finding
from kaggle_kit.platform.probe import Tried
from kaggle_kit.platform.surroundings import Surroundings
from kaggle_kit.runtime.bundle import MANIFEST
from kaggle_kit.runtime.mounts import find_bundle, find_competition, find_engines
from kaggle_kit.submission import check_columns
from kaggle_kit.task import Task, task_from_plain

METADATA = "kernel-metadata.json"
ATTACH = "notebook editor, Add Input; for a pushed kernel {0} in kernel-metadata.json"
_ONLINE = {  # what needs the internet in a script's text, and why
    r"pretrained\s*=\s*True": "downloads weights",
    r"pip3?\s+install(?![^\n]*--no-index)": "downloads packages",
    r"\bwget\s+http|\bcurl\s+http|snapshot_download\(|hf_hub_download\(": "downloads files",
}


def bundle_task(folder: Path) -> Task | None:
    """Return the task that a bundle is for, whatever else may be wrong with it; None where it does not say."""
    try:
        return task_from_plain(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["task"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def attached_bundle(here: Surroundings) -> tuple[Path | None, tuple[Finding, ...]]:
    """Return the attached folder with a bundle, and what is wrong where there is none, or several are."""
    try:
        return find_bundle(), ()
    except DataError as error:
        several = [folder for folder in attached_folders(here.root) if (folder / MANIFEST).is_file()]
        found = str(error) if several else "none is attached"
        bad = several or here.place == "rerun"
        return None, (
            Finding(
                level="red" if bad else "yellow",
                what="bundle",
                found=found,
                expected="" if several else "one, if this is to submit",
                repair="remove all but one from Input"
                if several
                else ATTACH.format('"dataset_sources": ["OWNER/SLUG"]') + "; publish it with kaggle-kit publish",
            ),
        )


def attached_engines() -> tuple[Path | None, tuple[Finding, ...]]:
    """Return the attached folder of TensorRT engines, and what is wrong where several are."""
    try:
        return find_engines(), ()
    except DataError as error:
        return None, (
            Finding(level="yellow", what="engines", found=str(error), repair="remove all but one from Input"),
        )


def check_competition(here: Surroundings, task: Task | None) -> Iterator[Finding]:
    """Yield whether the competition's data are attached."""
    names = [str(path.relative_to(here.root / "input")) for path in attached_folders(here.root)]
    if task is None:
        empty = not names
        yield Finding(
            level="yellow",
            what="inputs",
            found=f"under {here.root / 'input'}: {some_of(names, 9) if names else 'nothing'}; without a task it is not "
            "known which is the competition",
            repair=ATTACH.format('"competition_sources": ["SLUG"]') if empty else "give the task: examine(task=...)",
        )
        return
    file = task.submission.file
    try:
        folder = find_competition(file)
    except DataError as error:
        yield Finding(
            level="red", what="inputs", found=str(error), repair=ATTACH.format('"competition_sources": ["SLUG"]')
        )
    else:
        try:
            check_columns(task, folder)
        except DataError as error:
            yield Finding(level="red", what="task", found=str(error), repair="then make the bundle again")
        yield Finding(level="green", what="inputs", found=f"{folder} has {file}; attached: {some_of(names, 9)}")


def check_wheels(here: Surroundings, wheels: Sequence[Wheel]) -> Iterator[Finding]:
    """Yield which wheels are attached for this Python."""
    fitting = sorted({f"{wheel.name} {wheel.version}" for wheel in wheels if wheel.fits})
    foreign = sorted({wheel.name for wheel in wheels} - {wheel.name for wheel in wheels if wheel.fits})
    lacking = [name for name in foreign if name not in here.packages]
    if lacking:
        yield Finding(
            level="red",
            what="wheels",
            found=f"{some_of(lacking)} for other Pythons than {here.python_minor} alone",
            expected=f"cp{here.python_minor.replace('.', '')}",
            repair="at home, make the dataset again for this Python: kaggle-kit wheelhouse, then kaggle-kit publish",
        )
    else:
        number = f"{len(fitting)} for Python {here.python_minor}: " if fitting else ""
        yield Finding(level="green", what="wheels", found=f"{number}{', '.join(fitting[:9]) or 'none attached'}")


def check_bundle(here: Surroundings, folder: Path, tried: Tried, task: Task | None) -> Iterator[Finding]:
    """Yield whether a bundle is whole, is for the task, and computes what it did at home."""
    verify = here.kit_command(f"bundle --verify {folder}")
    opened, refused = tried.find("opened"), tried.find("refused")
    if opened is None:
        yield _not_opened(folder, tried, refused, verify)
        return
    size = opened["size"] / 1e6
    written = f"written by kaggle_kit {opened['kit_version']}, {opened['created'] or 'some day'}"
    found = (
        f"{folder}: {opened['members']} member(s), {size:,.1f} MB, every SHA-256 as written (checked in "
        f"{opened['seconds']:.1f} s); task {opened['task']!r}, {written}"
    )
    if task is not None and opened["task"] != task.name:
        yield Finding(
            level="red", what="bundle", found=found, expected=f"task {task.name!r}", repair="attach this task's bundle"
        )
    elif opened["kit_version"] != kaggle_kit.__version__:
        yield Finding(
            level="yellow",
            what="bundle",
            found=found,
            expected=f"kaggle_kit {kaggle_kit.__version__}, which is here",
            repair="the golden images below decide; to be sure, attach the wheel of the kit that wrote it",
        )
    else:
        yield Finding(level="green", what="bundle", found=found)
    engines = tried.find("engines")
    if engines is not None:
        yield _describe_engines(engines["why"])
    yield _check_golden(tried, opened["runs"], refused, verify)


def _not_opened(folder: Path, tried: Tried, refused: dict[str, str] | None, verify: str) -> Finding:
    if refused is not None:
        return Finding(
            level="red",
            what="bundle",
            found=refused["error"],
            repair="copy or publish the whole bundle again, as it was written",
        )
    if tried.ended == "late":
        return Finding(
            level="yellow",
            what="bundle",
            found=f"{folder}: its hashes were not all checked in {tried.seconds:.0f} s, so they were left out",
            repair=f"{verify}  # however long it takes",
        )
    unable = (tried.find("unable") or {}).get("error", tried.words)
    return Finding(level="red", what="bundle", found=f"{folder} could not be opened: {unable}", repair=verify)


def _describe_engines(why: str) -> Finding:
    if not why:
        return Finding(level="green", what="engines", found="TensorRT's fit this GPU, driver, versions and bundle")
    return Finding(
        level="yellow",
        what="engines",
        found=f"TensorRT's are passed over: {why}",
        repair="run kernels/build_engine on this GPU with this bundle, and attach its output",
    )


def _check_golden(tried: Tried, num_runs: int, refused: dict[str, str] | None, verify: str) -> Finding:
    runs = [step for step in tried.steps if step["step"] == "run"]
    away = [step["too_far"] for step in runs if step["too_far"]]
    if away or refused is not None:
        return Finding(
            level="red",
            what="golden images",
            found=away[0] if away else str(refused and refused["error"]),
            repair="use the opencv and onnxruntime versions of home, or make the bundle again with these",
        )
    unable, pixels = tried.find("unable"), tried.find("pixels")
    if unable is not None:
        return Finding(
            level="yellow",
            what="golden images",
            found=f"not tried: {unable['error']}",
            repair="mend packages and onnxruntime above, and run the doctor again",
        )
    if tried.ended == "crashed":
        return Finding(
            level="red",
            what="golden images",
            found=f"the process that ran them ended ({tried.words})",
            repair=f"{verify}  # says at which graph",
        )
    most = max((step["difference"] for step in runs), default=0.0)
    done = f"{len(runs)} of {num_runs} run(s)" + (f" at most {most:.1e} away from home" if runs else "")
    if len(runs) < num_runs:
        return Finding(
            level="yellow",
            what="golden images",
            found=f"{done}; the others were left out after {tried.seconds:.0f} s",
            repair=f"{verify}  # however long it takes",
        )
    seen = f"{pixels['images']} decode, pixels differ by up to {pixels['differ']} of 255; " if pixels else ""
    return Finding(
        level="green",
        what="golden images",
        found=f"{seen}{done} (allowed {runs[0]['allowed']:g}), on {runs[0]['provider']}",
    )


def check_kernel(folder: Path) -> Iterator[Finding]:
    """Yield whether a kernel's folder would need the internet.

    Args:
        folder: Holds `kernel-metadata.json` and the code it names.
    """
    path = folder / METADATA
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        code = folder / str(values["code_file"])
        text = code.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(
            level="red",
            what="kernel",
            found=f"{path} or the code it names does not read: {_reason(error)}",
            repair="see kernels/submit for one that does",
        )
        return
    if values.get("enable_internet", True) is not False:
        yield Finding(
            level="red",
            what="kernel",
            found=f"{path} leaves the internet on (Kaggle's default)",
            expected='"enable_internet": false',
            repair=f'write "enable_internet": false into {path}',
        )
    online = [f"`{match[0].strip()}` {why}" for one, why in _ONLINE.items() for match in re.finditer(one, text)]
    if online:
        yield Finding(
            level="yellow",
            what="kernel",
            found=f"{code}: {', '.join(dict.fromkeys(online))}, which fails without internet",
            repair="attach weights and wheels as datasets; pip install --no-index, pretrained=False",
        )
    if not online and values.get("enable_internet", True) is False:
        yield Finding(level="green", what="kernel", found=f"{path}: no internet, and {code.name} asks for none")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}"
    return f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else brief(error)
