"""An audit of made-up files, with findings to decide, for the tests of the review page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from audited import files_task, images_of, labels_of, scene, write_files

from kaggle_kit.audit.examine import Audit, Options, examine
from kaggle_kit.audit.findings import Finding, load_findings, save_findings
from kaggle_kit.audit.folder import FINDINGS
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.audit.review.pictures import Pictures
from kaggle_kit.task import task_from_plain

NAMES = [f"train{row}.png" for row in range(12)]


def issue(name: str, *, head: str = "kind", label: str = "1", suggested: str = "0", **rest: Any) -> Finding:
    """Return a label that looks wrong."""
    values = {"kind": "label_issue", "split": "train", "detail": "90% sure", **rest}
    return Finding(id=name, head=head, label=label, suggested=suggested, **values)


def reviewed_audit(folder: Path) -> Audit:
    """Audit 12 train images, of which 10 and 11 equal 0 and 1, and one in the test that equals 2; 3 to 6 look wrong.

    Image 4 looks empty too, and image 7 is broken.
    """
    pictures = [scene(row) for row in range(10)]
    train: dict[str, Any] = dict(zip(NAMES, [*pictures, pictures[0], pictures[1]], strict=True))
    train[NAMES[7]] = b"no picture"
    write_files(folder / "data", train, {"test0.png": pictures[2], "test1.png": scene(77)})
    task = files_task(heads={"kind": {"classes": ["cat", "<b>dog</b>"], "values": [0, 1]}})
    audit = examine(task, folder / "data", folder / "audit", Options(map_method="pca"))
    issues = [
        issue(
            NAMES[row],
            label=str(row % 2),
            suggested=str(1 - row % 2),
            score=1 - row / 20,
            detail="<script>window.broken = 1</script> 90% sure",
        )
        for row in (3, 4, 5, 6)
    ]
    issues.append(Finding(kind="empty", id=NAMES[4], split="train", score=5, detail="contrast 0.01"))
    path = folder / "audit" / FINDINGS
    save_findings([*load_findings(path), *issues], path)
    return audit


def made_desk(folder: Path, findings: list[Finding], *, ids: list[str] | None = None, **heads: Any) -> Desk:
    """Return a desk of images that lie nowhere: eight in train and two in the test.

    Args:
        folder: Where decisions go.
        findings: What there is to decide.
        ids: Of all ten images.
        heads: {name: (the head as tasks write it, classes of the train images)}; none: `kind` of two classes.
    """
    heads = heads or {"kind": ({"classes": 2}, np.arange(8) % 2)}
    images = images_of([scene(row) for row in range(10)], num_test=2)
    if ids is not None:
        images = images_of([scene(row) for row in range(10)], num_test=2, id=np.array(ids, np.str_))
    task = task_from_plain({**_plain_task(), "heads": {name: plain for name, (plain, _) in heads.items()}})
    labels = labels_of(images, **{name: classes for name, (_, classes) in heads.items()})
    pictures = Pictures(Opened(sources={}, absent={}, unnamed={}), images)
    return Desk(task, labels, images, findings, pictures, path=folder / "edits.jsonl", by="ann")


def shown(desk: Desk, queue: str, **options: Any) -> list[list[str]]:
    """Return the ids of each entry of a page of a queue."""
    page = desk.page(queue, **{"start": 0, "size": 24, **options})
    return [[image["id"] for image in entry["images"]] for entry in page["entries"]]


def decide(desk: Desk, action: str, queue: str, name: str, **values: str) -> dict[str, Any]:
    """Decide about the entry of a queue that holds an image."""
    entries = desk.page(queue, start=0, size=100, decided=True)["entries"]
    place, row = next(
        (entry["place"], image["row"]) for entry in entries for image in entry["images"] if image["id"] == name
    )
    return desk.decide(action, queue=queue, entry=place, row=row, values=values)


def counts(desk: Desk) -> dict[str, tuple[int, int]]:
    """Return {queue: (how many are open, how many there are)}."""
    return {queue["name"]: (queue["open"], queue["count"]) for queue in desk.state()["queues"]}


def _plain_task() -> dict[str, Any]:
    return {
        "name": "made",
        "metric": "accuracy",
        "images": {"format": "files", "folder": "images", "test_list": "test.csv", "id": "image"},
        "labels": {"id": "image"},
        "submission": {"form": "row_per_head", "id": "row_id"},
    }
