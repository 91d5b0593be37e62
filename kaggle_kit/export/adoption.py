"""What is written down of an adopted run's models: how they read images, how they were checked, and their hashes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kaggle_kit.errors import BundleError, DataError, SettingError
from kaggle_kit.export.likeness import Likeness
from kaggle_kit.export.reading import Reading
from kaggle_kit.files import replacing
from kaggle_kit.runs import EVERYTHING, Run
from kaggle_kit.runtime.bundle import file_sha256
from kaggle_kit.settings import build, plain

FORMAT = 2
FACTS = "adopted.json"


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """What is known of an adopted run's models.

    Attributes:
        reading: How they read images.
        checked: {fold: comparison with the predictions}.
        files: {fold: {each file that was written, relative to the run's folder: its SHA-256}}.
        originals: {fold: SHA-256 of the model it was made from, by `foreign_sha256`}; a torch module has no file, and
            is known by the SHA-256 of its export.
    """

    reading: Reading
    checked: dict[str, Likeness]
    files: dict[str, dict[str, str]]
    originals: dict[str, str]


def write_adoption(adoption: Adoption, folder: Path) -> None:
    """Write what is known of models into their run's folder, atomically."""
    with replacing(folder / FACTS) as temporary:
        text = json.dumps({"format": FORMAT, **plain(adoption)}, indent=1, ensure_ascii=False)
        temporary.write_text(text, encoding="utf-8")


def read_adoption(run: Run) -> Adoption:
    """Return what is known of an adopted run's models.

    Raises:
        DataError: When the run was not adopted, or its file does not read.
    """
    path = run.folder / FACTS
    if not path.is_file():
        raise DataError(f"run {run.name!r} has no {FACTS}, so that it was not adopted; give one that was")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not of format {FORMAT}, which this version reads; adopt the models again")
        return build(Adoption, values)
    except (UnicodeDecodeError, json.JSONDecodeError, SettingError) as error:
        raise DataError(f"{path} does not read ({error}); adopt the models again") from None


def format_adoption(adoption: Adoption) -> list[str]:
    """Return what was checked of each model, a line each, and how all of them read images."""
    lines = [f"images are read as: {adoption.reading}"]
    for fold, checked in adoption.checked.items():
        what = "everything" if int(fold) == EVERYTHING else f"fold {fold}"
        verdict = "repeats its predictions" if checked.repeats else "about repeats its predictions"
        if int(fold) == EVERYTHING:
            each = (
                f"{one.right:.2%} of {head!r} ({one.right_before:.2%} out of fold)"
                for head, one in checked.heads.items()
            )
            verdict = f"is right on {', '.join(each)} in images it was trained on"
        lines.append(f"{what}: {checked.model} {verdict}: {checked}")
    return lines


def check_adopted(run: Run, fold: int) -> None:
    """Refuse a model whose files are not those that were written and checked when it was adopted.

    Args:
        run: An adopted run.
        fold: One of its folds; -1 of a model that was trained on everything.

    Raises:
        BundleError: When a file is missing or has another SHA-256, or none was written down.
        DataError: When the run has no model of that fold.
    """
    written = _known_adoption(run).files.get(str(fold), {})
    for name in sorted({run.onnx(fold).relative_to(run.folder).as_posix(), *written}):
        path, expected = run.folder / name, written.get(name, "of none")
        found = file_sha256(path) if path.is_file() else "of no file"
        if found != expected:
            raise BundleError(
                f"run {run.name!r}: {path} has SHA-256 {found}, expected {expected}, as when it was adopted and "
                "checked; adopt the model again"
            )


def adopted_hash(run: Run, fold: int) -> str:
    """Return the SHA-256 of the model that an adopted one was made from, in hexadecimal.

    Args:
        run: An adopted run.
        fold: One of its folds; -1 of a model that was trained on everything.

    Raises:
        BundleError: When none was written down.
    """
    originals = _known_adoption(run).originals
    if str(fold) not in originals:
        raise BundleError(
            f"{run.folder / FACTS} has no SHA-256 of what fold {fold} was made from (found: folds "
            f"{sorted(originals)}); adopt the models again"
        )
    return originals[str(fold)]


def _known_adoption(run: Run) -> Adoption:
    try:
        return read_adoption(run)
    except DataError as error:
        raise BundleError(str(error)) from None
