"""Reports of made-up audits for the tests of the report."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from audited import files_task, images_of, scene

from kaggle_kit.audit.after_model import look_after_model
from kaggle_kit.audit.counts import count_classes, rare_findings
from kaggle_kit.audit.duplicates import Duplicates
from kaggle_kit.audit.examine import Advice, Audit, Options, examine
from kaggle_kit.audit.map2d import Map
from kaggle_kit.audit.opening import Opened
from kaggle_kit.audit.pictures import Images
from kaggle_kit.audit.report import write_report
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import Labels, read_labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.sample import make_sample
from kaggle_kit.task import read_task

EVIL = "<script>window.broken=1</script>\"'&</style>"
BENGALI = "\u0995\u09cd\u09b7\u09bf"
LONG = "a-name-without-end-" * 40


class Page(HTMLParser):
    """What of a page the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.policy = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._inside = tag
        self.addresses += [found[name] for name in ("src", "href", "data", "action", "poster") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "script":
            self.scripts.append((found, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        assert not any(name.startswith("on") for name in found)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is read, spaces as one."""
        return " ".join(" ".join(self.texts).split())


def read_page(audit: Audit, folder: Path) -> Page:
    """Write the report and read it back."""
    return Page(write_report(audit, folder / "report.html").read_text(encoding="utf-8"))


class Drawn:
    """A source whose images are drawn when they are read; broken ones fail as real ones do."""

    stored = None
    shape = (24, 32, 1)

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def read(self, row: int) -> np.ndarray:
        return np.full((24, 32, 1), row % 256, np.uint8)

    def encoded_bytes(self) -> int:
        return 1


def made_audit(folder: Path, heads: dict[str, Any], *, num_train: int, num_test: int = 0, **parts: Any) -> Audit:
    """Return an audit of images that are drawn when they are read, however many there are."""
    rng, number = np.random.default_rng(0), num_train + num_test
    one = images_of([scene(0, channels=1)])
    columns = {f.name: np.repeat(getattr(one, f.name), number, axis=0) for f in dataclasses.fields(Images)}
    columns["id"] = np.array([f"i{row}" for row in range(number)])
    columns["split"] = np.array(["train"] * num_train + ["test"] * num_test, np.str_)
    columns["brightness"] = rng.random(number).astype(np.float32)
    images = Images(**columns)
    task = files_task(heads=heads, metric="macro_f1", submission={"form": "row_per_head", "id": "row_id"})
    classes = {name: rng.integers(0, head.num_classes, num_train) for name, head in task.heads.items()}
    for name in task.multilabel_heads:
        classes[name] = (rng.random((num_train, task.heads[name].num_classes)) < 0.3).astype(np.uint8)
    labels = Labels(ids=images.id[:num_train], classes=classes)
    folds = parts.get("folds")
    counts = count_classes(task, labels, num_images={"train": num_train, "test": num_test}, folds=folds)
    shown = np.arange(min(number, 5000))
    place = rng.uniform(-1, 1, (2, len(shown))).astype(np.float32)
    sources = {"train": Drawn(images.id[:num_train])} | ({"test": Drawn(images.id[num_train:])} if num_test else {})
    values: dict[str, Any] = {
        "task": task,
        "data": folder / "data",
        "folder": folder,
        "opened": Opened(sources=sources, absent={}, unnamed={}),  # type: ignore[arg-type]
        "images": images,
        "labels": labels,
        "folds": None,
        "counts": counts,
        "duplicates": Duplicates(groups=(), group_of=np.arange(number)),
        "drift": None,
        "leaks": (),
        "map": Map(rows=shown, x=place[0], y=place[1], method="pca", made_from="thumbnails", text="A map"),
        "findings": tuple(rare_findings(counts, task)),
        "advice": (Advice(text="Nothing was found that needs mending.", severity="fine"),),
    }
    return Audit(**{**values, **parts})


def with_model(audit: Audit, *, sure: float = 0.6, right: float = 0.8, noise: float = 0.0) -> Audit:
    """Return the audit with a model that knows a share of the classes, guesses the others, and wavers by some noise."""
    rng, probs = np.random.default_rng(1), {}
    for name, head in audit.task.heads.items():
        truth = audit.labels.classes[name]
        if truth.ndim == 2:
            probs[name] = np.clip(0.2 + 0.6 * truth + rng.normal(0, 0.2, truth.shape), 0, 1).astype(np.float32)
            continue
        said = np.where(rng.random(len(truth)) < right, truth, rng.integers(0, head.num_classes, len(truth)))
        probs[name] = np.full((len(truth), head.num_classes), (1 - sure) / (head.num_classes - 1), np.float32)
        probs[name][np.arange(len(truth)), said] = sure
        if noise:
            probs[name] *= 1 - noise
            probs[name] += noise * rng.dirichlet(np.ones(head.num_classes), len(truth)).astype(np.float32)
    oof = Predictions(ids=audit.labels.ids, probs=probs, multilabel=audit.task.multilabel_heads)
    run = SimpleNamespace(name="a-run", folder=Path("a-run"), task=audit.task, oof=lambda: oof)
    after = look_after_model(audit.task, audit.labels, [run])  # type: ignore[list-item]
    return dataclasses.replace(audit, after=after, findings=(*audit.findings, *after.findings))


def ships_audit(folder: Path) -> Audit:
    """Return an audit of the sample `ships`, with its planted defects."""
    sample = make_sample("ships", folder / "ships", num_train=120, num_test=60)
    task = read_task(sample.task)
    folds = make_folds(read_labels(task, sample.data), "stratified", num_folds=3, seed=0)
    return examine(task, sample.data, folder / "audit", Options(map_method="pca", folds=folds))
