"""The report's map of the images: points that a script draws, each with its picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.captions import NO_CLASS, Captions, cut
from kaggle_kit.audit.montage import DOT_SIDE, Pictures, spread_rows, sprite_uri
from kaggle_kit.audit.pictures import SPLITS
from kaggle_kit.heads import Head
from kaggle_kit.tables import rows_of
from kaggle_kit.train.outcome import Fields

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

Ints = npt.NDArray[np.int64]

MAX_DOTS = 2000
_STEPS = 1000  # of a coordinate


def choose_dots(audit: Audit, captions: Captions) -> list[int]:
    """Return the places in the map's rows that are drawn, at most 2,000, and ask for their pictures."""
    if audit.map is None:
        return []
    places = spread_rows(np.arange(len(audit.map.rows)), MAX_DOTS, np.random.default_rng(0))
    captions.wanted.dots.update(audit.map.rows[places].tolist())
    return places


def map_fields(audit: Audit, places: list[int], captions: Captions, pictures: Pictures) -> Fields:
    """Return the map: its points and what colours them as JSON, and their pictures in one; nothing without a map."""
    placed = audit.map
    if placed is None:
        return {}
    shown = [place for place in places if int(placed.rows[place]) in pictures.dots]
    if not shown:
        return {}
    rows = placed.rows[shown]
    sprite, across = sprite_uri([pictures.dots[row] for row in rows.tolist()])
    points = {
        "x": _whole(placed.x[shown]),
        "y": _whole(-placed.y[shown]),
        "ids": [cut(str(name)) for name in audit.images.id[rows].tolist()],
        "where": [captions.where(row) for row in rows.tolist()],
        "labels": [_text(captions.labels(row)) for row in rows.tolist()],
        "across": across,
        "side": DOT_SIDE,
        "views": views(audit, rows),
    }
    return {
        "text": f"{placed.text}.",
        "drawn": f"{len(shown):,}",
        "of": f"{len(audit.images):,}",
        "sprite": sprite,
        "points": as_json(points),
    }


def views(audit: Audit, rows: Ints) -> list[dict[str, Any]]:
    """Return what points may be coloured by.

    Returns:
        `name`, `names` of its kinds, `of` each point its kind, -1: none, and `none`: what those without a kind are.
    """
    known = audit.label_rows()[rows]
    found = [_class_view(head, audit.labels.classes[name], known) for name, head in audit.task.heads.items()]
    is_test = audit.images.split[rows] == "test"
    found.append({"name": "split", "names": list(SPLITS), "of": is_test.astype(int).tolist()})
    if audit.folds is not None:
        names = [f"fold {fold}" for fold in range(audit.folds.num_folds)]
        found.append({"name": "fold", "names": names, "of": audit.fold_of()[rows].tolist()})
    if audit.after is not None:
        found.append({"name": "the model", "names": ["right", "wrong"], "of": _wrong(audit, rows)})
    return [view | {"none": _without(view, is_test)} for view in found]


def _without(view: dict[str, Any], is_test: npt.NDArray[np.bool_]) -> str:
    """Return what the points are that have no kind: of the test, of train without a label or fold, or both."""
    bare = np.asarray(view["of"]) < 0
    lacks = {"fold": "no fold", "the model": "no prediction"}.get(view["name"], "no label")
    return " or ".join(["test"] * bool((bare & is_test).any()) + [lacks] * bool((bare & ~is_test).any()))


def _class_view(head: Head, classes: npt.NDArray[Any], known: Ints) -> dict[str, Any]:
    names = [cut(name) for name in head.class_names]
    own = classes[np.maximum(known, 0)] if len(classes) else np.zeros((len(known), *classes.shape[1:]), np.int64)
    if own.ndim == 2:
        names += [NO_CLASS, "several classes"]
        number = own.sum(axis=1)
        own = np.where(number == 1, own.argmax(axis=1), np.where(number, head.num_classes + 1, head.num_classes))
    return {"name": head.name, "names": names, "of": np.where(known >= 0, own, -1).tolist()}


def _wrong(audit: Audit, rows: Ints) -> list[int]:
    """Return 1 for images of which the model gets a head wrong, 0 where all is right, -1 where it said nothing."""
    assert audit.after is not None
    after = audit.after
    wrong = np.zeros(len(after.ids), bool)
    for head, truth in after.truth.items():
        probs = after.probs[head]
        miss = ((probs >= 0.5) != (truth > 0)).any(axis=1) if truth.ndim == 2 else probs.argmax(axis=1) != truth
        wrong |= miss
    places = rows_of(audit.images.id[rows], after.ids)
    known = (places >= 0) & (audit.images.split[rows] == "train")
    return [int(number) for number in np.where(known, wrong[places], -1)]


def _text(labels: list[Fields]) -> str:
    return "\n".join(f"{one['head']}: {one['name']}" if one["head"] else one["name"] for one in labels)


def _whole(values: npt.NDArray[np.float32]) -> list[int]:
    return [int(value) for value in np.round((np.clip(values, -1, 1) + 1) / 2 * _STEPS)]


def as_json(values: object) -> str:
    """Return JSON that may stand in a page's script element: no text in it can end the element."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
