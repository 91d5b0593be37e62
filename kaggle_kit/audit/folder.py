"""The folder of an audit: whose it is, and what is written to it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kaggle_kit
from kaggle_kit.audit.after_model import weakness_text
from kaggle_kit.audit.findings import save_findings
from kaggle_kit.errors import DataError
from kaggle_kit.files import check_replaceable, replacing
from kaggle_kit.runs import Run
from kaggle_kit.task import Task, task_to_plain

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

FORMAT, KIND = 1, "audit"
META, FINDINGS, SUMMARY, REPORT, EDITS = "audit.json", "findings.parquet", "summary.json", "report.html", "edits.jsonl"
FINDINGS_JSON = "findings.json"


def start_folder(task: Task, data: Path, folder: Path, runs: Sequence[Run]) -> None:
    """Make the folder of an audit, or take an earlier one of the same data, and say in it whose it is.

    Raises:
        DataError: When it holds anything else, an audit of other data, or lies in the data folder.
    """
    if folder.resolve().is_relative_to(data.resolve()):
        raise DataError(f"{folder} is, or lies in, the data folder {data}; write outside of it, such as into ./audit")
    meta = read_meta(folder)
    if meta is None:
        check_replaceable(folder, (), what="audit", error=DataError)
    elif meta.get("data") != str(data.resolve()) or meta.get("task", {}).get("name") != task.name:
        raise DataError(
            f"{folder} holds an audit of task {meta.get('task', {}).get('name')!r} in {meta.get('data')}; choose "
            "another folder: decisions in it belong to those images"
        )
    values = {
        "format": FORMAT,
        "kind": KIND,
        "task": task_to_plain(task),
        "data": str(data.resolve()),
        "runs": [str(run.folder.resolve()) for run in runs],
        "kit": kaggle_kit.__version__,
    }
    _write_json(folder / META, values)


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return what audit.json in a folder says; None where there is no such file.

    Raises:
        DataError: When it is damaged, or of another format.
    """
    path = folder / META
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{path} is damaged; delete it and audit again into a new folder") from None
    if not isinstance(meta, dict) or (meta.get("format"), meta.get("kind")) != (FORMAT, KIND):
        raise DataError(f"{path} is of no audit of this version of the kit; choose another folder")
    return meta


def read_weakness(folder: Path) -> str:
    """Return what the summary in an audit's folder says against the model; empty where it says nothing."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(summary.get("weakness", "")) if isinstance(summary, dict) else ""


def save_audit(audit: Audit) -> None:
    """Write findings and summary, each atomically; what was known before them is there already."""
    folder = audit.folder
    save_findings(audit.findings, folder / FINDINGS)
    _write_json(folder / FINDINGS_JSON, [dataclasses.asdict(finding) for finding in audit.findings])
    _write_json(folder / SUMMARY, summary_of(audit))


def summary_of(audit: Audit) -> dict[str, Any]:
    """Return the counts of an audit and what to do first, as JSON-ready values."""
    drift = None
    if audit.drift is not None:
        numbers = {name: getattr(audit.drift, name) for name in ("auc", "low", "high", "visible_auc")}
        known = {name: None if math.isnan(value) else round(value, 4) for name, value in numbers.items()}
        drift = {**known, "text": audit.drift.text, "drifted": [one.text for one in audit.drift.drifted]}
    groups = {kind: len(audit.duplicates.of_kind(kind)) for kind in ("exact", "near")}
    return {
        "images": audit.counts.num_images,
        "labelled": audit.counts.num_labelled,
        "findings": audit.numbers(),
        "label_issues": None if audit.after is None else audit.after.num_issues,
        "weakness": "" if audit.after is None else weakness_text(audit.after.heads),
        "duplicate_groups": groups,
        "contradicting_groups": sum(bool(group.contradicts) for group in audit.duplicates.groups),
        "crossing_groups": sum(group.crosses for group in audit.duplicates.groups),
        "drift": drift,
        "leaks": [leak.text for leak in audit.leaks],
        "first": [dataclasses.asdict(step) for step in audit.advice],
        "notes": list(audit.notes),
        "seconds": audit.seconds,
    }


def _write_json(path: Path, values: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")
