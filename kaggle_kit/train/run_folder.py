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
from kaggle_kit.runs import FoldSummary, fold_folder
from kaggle_kit.settings import build, plain

MARKER = ".kaggle-kit-run"
LOCK = ".lock"
FOLD = "fold.json"
# What may differ between a training and its continuation: nothing of it reaches the weights.
FREE = ("config.max_hours", "config.log", "config.loader.num_workers")


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
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DataError(
            f"{out}: another process trains into this folder; wait for it, or choose another `out`"
        ) from None
    try:
        if overwrite:
            empty(out)
        elif (out / MARKER).is_file():
            _check_same_plan(out, plan)
        with replacing(out / MARKER) as temporary:
            temporary.write_text(json.dumps(plan, indent=1, ensure_ascii=False), encoding="utf-8")
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            (out / LOCK).unlink(missing_ok=True)


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything that no run wrote.

    Raises:
        DataError: Naming it.
    """
    own = [path.name for path in out.iterdir() if _is_own(path.name)] if (out / MARKER).is_file() else []
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


def empty(out: Path) -> None:
    """Delete what an earlier run wrote."""
    for path in [path for path in out.iterdir() if _is_own(path.name) and path.name not in (MARKER, LOCK)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_own(name: str) -> bool:
    files = (MARKER, LOCK, "run.json", "run.html", "folds.parquet", "oof.npz")
    return name in files or re.fullmatch(r"fold\d+|everything|tensorboard|wandb|plots", name) is not None


def _check_same_plan(out: Path, plan: dict[str, Any]) -> None:
    text = (out / MARKER).read_text(encoding="utf-8")
    try:
        before = _flat(json.loads(text)) if text else {}
    except ValueError:
        before = {}
    now = _flat(json.loads(json.dumps(plan)))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and not key.startswith(FREE)]
    if keys:
        key, name = keys[0], keys[0].removeprefix("config.")
        others = f", and {some_of(keys[1:])}" if len(keys) > 1 else ""
        raise DataError(
            f"{out} holds a run begun otherwise: `{name}` was {before.get(key)!r}, is now {now.get(key)!r}"
            f"{others}; choose another `out`, or set overwrite=true"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
