"""A run's folder while it is trained: whose it is, what is in it already, and who may write."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.files import check_replaceable, replacing
from kaggle_kit.runs import FoldSummary, fold_folder, read_run
from kaggle_kit.settings import build, plain
from kaggle_kit.train.state import STATE

MARKER = ".kaggle-kit-run"
LOCK = ".lock"
FOLD = "fold.json"
EDITS = "edits.jsonl"
FILES = (MARKER, "run.json", "run.html", "folds.parquet", EDITS, "oof.npz", "soup.json")
# What may differ between a training and its continuation: nothing of it reaches the weights.
FREE = ("config.max_hours", "config.log", "config.loader.num_workers", "config.edits")


@contextlib.contextmanager
def claimed(out: Path, plan: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold a run's folder: new, or an earlier training of the same plan that goes on.

    Args:
        out: The folder; made where it is absent.
        plan: What decides about the run's weights, as plain values.
        overwrite: Empty the folder of an earlier run first.

    Raises:
        DataError: When the folder holds something else, another plan's run, or another process works in it.
    """
    import filelock

    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"`out`: {out} cannot be made ({error.strerror or error}); choose another folder") from None
    lock = filelock.FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DataError(
            f"{out}: another process trains into this folder; wait for it, or choose another `out`"
        ) from None
    try:
        _clear_litter(out)
        different = _difference(out, plan)
        if overwrite and (different or (out / "run.json").is_file()):
            empty(out)  # but not what the same command began before
        elif different:
            raise DataError(
                f"{out} holds a run begun otherwise: {different}; choose another `out`, or set overwrite=true"
            )
        with replacing(out / MARKER) as temporary:
            temporary.write_text(json.dumps(plan, indent=1, ensure_ascii=False), encoding="utf-8")
        yield
    finally:
        lock.release()


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything that no run wrote.

    Raises:
        DataError: Naming it.
    """
    begun = (out / MARKER).is_file() or (out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK})
    own = [path.name for path in out.iterdir() if _is_own(path.name)] if begun and out.is_dir() else []
    check_replaceable(out, own, what="run", error=DataError)


def finished_folds(out: Path) -> dict[int, FoldSummary]:
    """Return the folds whose training is through, or was ended by its time limit."""
    found = {}
    for path in sorted(out.glob(f"*/{FOLD}")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found[int(values["fold"])] = build(FoldSummary, values["summary"])
        except (ValueError, KeyError, TypeError, SettingError) as error:
            raise DataError(f"{path} does not read ({error}); delete its folder to train that fold again") from None
    return dict(sorted(found.items()))


def finish_fold(out: Path, fold: int, summary: FoldSummary) -> None:
    """Note that a fold is through."""
    with replacing(fold_folder(out, fold) / FOLD) as temporary:
        temporary.write_text(json.dumps({"fold": fold, "summary": plain(summary)}, indent=1), encoding="utf-8")


def unfinish_fold(out: Path, fold: int) -> None:
    """Forget that a fold was ended by its time limit, now that it goes on."""
    (fold_folder(out, fold) / FOLD).unlink(missing_ok=True)


def is_complete(out: Path, folds: dict[int, FoldSummary]) -> bool:
    """Return whether a run's files tell of just these finished folds."""
    return (out / "run.json").is_file() and (out / "run.html").is_file() and read_run(out).folds == folds


def known_id(out: Path) -> str:
    """Return the id of the run that is there, or nothing: a ledger still knows it when more folds are trained."""
    return read_run(out).id if (out / "run.json").is_file() else ""


def discard_leftovers(folder: Path) -> None:
    """Delete what only an unfinished fold needs."""
    for pattern in (STATE, "contender*", "pending*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def empty(out: Path) -> None:
    """Delete what an earlier run wrote; first what says that folds are finished."""
    for path in out.glob(f"*/{FOLD}"):
        path.unlink()
    for path in [path for path in out.iterdir() if _is_own(path.name) and path.name not in (MARKER, LOCK)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_own(name: str) -> bool:
    folders = r"fold\d+|everything|tensorboard|wandb|plots"
    return name in (LOCK, *FILES) or _is_litter(name) or re.fullmatch(folders, name) is not None


def _is_litter(name: str) -> bool:
    """Return whether this is what a kill leaves of a file that was being written: see `kaggle_kit.files.replacing`."""
    return any(name.startswith(f".{file}.") for file in FILES)


def _clear_litter(out: Path) -> None:
    """Delete what kills have left, now that nobody else writes here."""
    for path in out.iterdir():
        if _is_litter(path.name):
            path.unlink(missing_ok=True)
    for path in out.glob("*/.*.*"):
        if re.fullmatch(r"fold\d+|everything", path.parent.name):
            path.unlink(missing_ok=True)


def _difference(out: Path, plan: dict[str, Any]) -> str:
    """Return in what the run that was begun here differs from a plan; empty where it does not, or there is none."""
    marker = out / MARKER
    text = marker.read_text(encoding="utf-8") if marker.is_file() else ""
    if not marker.is_file():
        return ""
    try:
        before = _flat(json.loads(text))
    except ValueError:
        return f"{marker} does not read"
    now = _flat(json.loads(json.dumps(plan)))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and not key.startswith(FREE)]
    if not keys:
        return ""
    names = [key.removeprefix("config.") for key in keys]
    others = f", and {some_of(names[1:])}" if names[1:] else ""
    return f"`{names[0]}` was {before.get(keys[0])!r}, is now {now.get(keys[0])!r}{others}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
