"""The report's sections on what is found before any model, as plain values for its template."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.advice import many
from kaggle_kit.audit.captions import LONGEST_TEXT, Captions, cut
from kaggle_kit.audit.counts import HeadCounts
from kaggle_kit.audit.duplicates import Group
from kaggle_kit.audit.findings import Finding, Kind
from kaggle_kit.audit.montage import ACROSS, spread_rows
from kaggle_kit.audit.pictures import SPLITS
from kaggle_kit.audit.plots import columns, heat_picture, histogram, matrix_rows
from kaggle_kit.audit.traits import Trait
from kaggle_kit.train.outcome import Fields
from kaggle_kit.train.plots import MOST_NAMED

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

Ints = npt.NDArray[np.int64]

MOST_TILES, TILES_A_CLASS = 600, 10  # of all montages together, and of one class
CLASSES_AT_ONCE = 24  # montages and rows that are not folded away
NUM_ODD, NUM_GROUPS, NUM_TWINS, NUM_SUSPECTS = 18, 18, 6, 18
NUM_LISTED, NUM_MATRICES, NUM_SIZES = 60, 6, 8
ODD: dict[Kind, str] = {
    "gray": "Gray among colour",
    "mode": "Unusual mode",
    "size": "Unusual size or shape",
    "empty": "Nearly empty",
    "dark": "Dark",
    "bright": "Too bright",
    "blurred": "Blurred",
}
_LISTS: dict[Kind, str] = {
    "broken": "Cannot be read",
    "missing_image": "Named, and there is no image",
    "missing_label": "There, and named in no list",
}
_PROPERTIES = (
    ("height", "Height, pixels", True),
    ("width", "Width, pixels", True),
    ("brightness", "Brightness", False),
    ("contrast", "Contrast", False),
    ("sharpness", "Sharpness", False),
    ("content", "Share that is not background", False),
    ("colourfulness", "Colourfulness", False),
)


def class_fields(audit: Audit) -> Fields:
    """Return counts per class, head and fold, and what comes together."""
    counts = audit.counts
    folds = [
        {
            "name": str(fold),
            "images": f"{int(size):,}",
            "lacks": [f"{int((head.by_fold[fold] == 0).sum()):,}" for head in counts.heads.values()],
        }
        for fold, size in enumerate(counts.fold_sizes)
    ]
    pairs = [_together(audit, pair, matrix) for pair, matrix in list(counts.together.items())[:NUM_MATRICES]]
    return {
        "heads": [_head_fields(audit, head) for head in counts.heads.values()],
        "folds": folds,
        "together": pairs,
        "more_pairs": max(0, len(counts.together) - NUM_MATRICES),
        "combinations": f"{counts.num_combinations:,}" if len(audit.task.heads) > 1 else "",
        "rarest_wanted": counts.rarest_wanted,
        "any_rare": any(head.rare for head in counts.heads.values()),
    }


def _head_fields(audit: Audit, head: HeadCounts) -> Fields:
    order = np.argsort(-head.count, kind="stable").tolist()
    top, rare = max(int(head.count.max(initial=0)), 1), set(head.rare)
    rows = [
        {
            "name": cut(head.names[place]),
            "value": cut(head.values[place]) if head.values[place] != head.names[place] else "",
            "images": f"{int(head.count[place]):,}",
            "share": f"{head.count[place] / top:.3f}",
            "of_all": f"{head.count[place] / max(audit.counts.num_labelled, 1):.1%}",
            "rare": place in rare,
            "folds": [f"{int(fold[place]):,}" for fold in head.by_fold],
        }
        for place in order
    ]
    few, many = int(head.count.min()), int(head.count.max())
    imbalance = f", {many / few:,.0f} to 1" if few else ""
    facts = f"{len(rows):,} classes of {few:,} to {many:,} images{imbalance}; median {int(np.median(head.count)):,}"
    kind = "auxiliary head" if head.head in audit.task.auxiliary else audit.task.heads[head.head].kind
    return {
        "title": head.head,
        "facts": f"{facts}; {kind}.",
        "unlabelled": f"{head.unlabelled:,}" if head.unlabelled else "",
        "rows": rows if len(rows) <= MOST_NAMED else rows[:5] + rows[-15:],
        "skipped": max(0, len(rows) - 20) if len(rows) > MOST_NAMED else 0,
        "all": rows if len(rows) > MOST_NAMED else [],
        "columns": columns(head.count, [cut(name) for name in head.names]) if len(rows) > MOST_NAMED else [],
        "rare": len(rare),
        "num_folds": len(head.by_fold),
        "median_at": f"{100 * (1 - float(np.median(head.count)) / top):.2f}",
    }


def _together(audit: Audit, pair: tuple[str, str], matrix: Ints) -> Fields:
    """Return how often classes of two heads come together; the head with more classes lies across."""
    if matrix.shape[0] > matrix.shape[1]:
        pair, matrix = (pair[1], pair[0]), matrix.T
    names = [[cut(name) for name in audit.task.heads[head].class_names] for head in pair]
    same, small = pair[0] == pair[1], max(matrix.shape) <= MOST_NAMED
    counted = matrix[np.triu_indices(len(matrix), 1)] if same else matrix
    return {
        "title": f"{pair[0]} with itself" if same else f"{pair[0]} and {pair[1]}",
        "text": f"{int((counted > 0).sum()):,} of {counted.size:,} pairs of classes occur together.",
        "lines": matrix_rows(matrix, *names, confusion=False) if small else [],
        "names": names[1],
        "turned": max(map(len, names[1])) > 3,
        "heat": "" if small else heat_picture(matrix, confusion=False),
        "aspect": f"{min(matrix.shape[1] / matrix.shape[0], 4):.2f}",
        "corner": pair[0] if same else f"{pair[0]} \\ {pair[1]}",
        "first": pair[0],
        "second": pair[1],
    }


def montage_fields(audit: Audit, captions: Captions) -> list[Fields]:
    """Return which images stand for each class of each head, drawn anew for each, the same each time."""
    heads = audit.task.heads
    classes = sum(head.num_classes for head in heads.values())
    tiles = max(1, min(TILES_A_CLASS, MOST_TILES // max(classes, 1)))
    rng = np.random.default_rng(0)
    labelled = np.flatnonzero((audit.label_rows() >= 0) & audit.images.readable)
    known = audit.label_rows()[labelled]
    sections = []
    for name, head in heads.items():
        values, cards = audit.labels.classes[name][known], []
        for place in range(min(head.num_classes, MOST_TILES)):
            here = np.flatnonzero(values[:, place] > 0) if values.ndim == 2 else np.flatnonzero(values == place)
            rows = spread_rows(labelled[here], tiles, rng)
            captions.wanted.tiles.update(rows)
            count = int(audit.counts.heads[name].count[place])
            rare = place in audit.counts.heads[name].rare
            cards.append({"name": cut(head.class_names[place]), "images": f"{count:,}", "rows": rows, "rare": rare})
        sections.append(
            {
                "title": name,
                "cards": cards[:CLASSES_AT_ONCE],
                "more": cards[CLASSES_AT_ONCE:],
                "across": min(ACROSS, tiles),
                "beyond": max(0, head.num_classes - MOST_TILES),
            }
        )
    return sections


def property_fields(audit: Audit) -> Fields:
    """Return distributions of sizes, shapes and light, and tables of modes, formats and sizes."""
    images = audit.images
    sound = images.readable
    splits = {str(split): np.flatnonzero(sound & (images.split == split)) for split in SPLITS}

    def plot(title: str, values: npt.NDArray[Any], *, whole: bool = False) -> Fields:
        groups = {split: values[rows] for split, rows in splits.items()}
        return histogram(title, groups, _rounded if whole else _short, whole=whole)

    plots = [plot(title, getattr(images, name), whole=whole) for name, title, whole in _PROPERTIES]
    plots.insert(2, plot("Aspect ratio, width to height", images.width / np.maximum(images.height, 1)))
    if images.num_bytes.any():
        plots.append(plot("File size, kB", images.num_bytes / 1000))
    modes = [f"{mode} {form}" for mode, form in zip(images.mode.tolist(), images.file_format.tolist(), strict=True)]
    shapes = [f"{w} x {h}" for w, h in zip(images.width.tolist(), images.height.tolist(), strict=True)]
    return {
        "plots": [one for one in plots if one["lines"]],
        "same": [(one["title"], one["same"]) for one in plots if one["same"]],
        "splits": [split for split in SPLITS if len(splits[split])],
        "tables": [
            _tally(audit, "mode and format", np.array(modes), sound),
            _tally(audit, "width x height", np.array(shapes), sound),
        ],
        "animated": f"{int((images.frames[sound] > 1).sum()):,}" if (images.frames[sound] > 1).any() else "",
    }


def _rounded(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else _rounded(value)


def _tally(audit: Audit, title: str, values: npt.NDArray[Any], sound: npt.NDArray[np.bool_]) -> Fields:
    """Return how many images of each split have each of the most common values."""
    counted = {split: Counter(values[sound & (audit.images.split == split)].tolist()) for split in SPLITS}
    total = sum(counted.values(), Counter[str]())
    rows = [
        {"name": name, "counts": [f"{counted[split][name]:,}" for split in SPLITS]}
        for name, _ in total.most_common(NUM_SIZES)
    ]
    return {"title": title, "rows": rows, "more": max(0, len(total) - NUM_SIZES)}


def file_fields(by_kind: dict[Kind, list[Finding]], audit: Audit) -> Fields:
    """Return what cannot be read, and ids that are in one place and not in the other."""
    lists = [
        {
            "title": title,
            "number": f"{len(found):,}",
            "rows": [
                {"id": cut(one.id), "split": one.split, "text": cut(one.detail, LONGEST_TEXT)}
                for one in found[:NUM_LISTED]
            ],
            "more": max(0, len(found) - NUM_LISTED),
        }
        for kind, title in _LISTS.items()
        if (found := by_kind.get(kind, []))
    ]
    stray = [cut(str(name)) for name in audit.opened.stray[:NUM_LISTED]]
    return {"lists": lists, "stray": stray, "num_stray": len(audit.opened.stray)}


def odd_fields(by_kind: dict[Kind, list[Finding]], traits: Sequence[Trait], captions: Captions) -> list[Fields]:
    """Return galleries of images that stand out, the worst first, and those that a class's trait explains last."""
    galleries = []
    for kind, title in ODD.items():
        found = by_kind.get(kind, [])
        shown = [item for one in found[:NUM_ODD] if (item := captions.of_finding(one))]
        if not found:
            continue
        texts = {item["text"] for item in shown}
        alike = len(shown) > 1 and len(texts) == 1  # said once, not below each
        galleries.append(
            {
                "title": title,
                "number": f"{len(found):,}",
                "items": [item | {"text": ""} for item in shown] if alike else shown,
                "text": texts.pop() if alike else "",
                "traits": [trait.text for trait in traits if trait.kind == kind],
                "more": len(found) - len(shown),
            }
        )
    return galleries


def duplicate_fields(audit: Audit, captions: Captions) -> Fields:
    """Return groups of equal and of nearly equal images side by side."""
    found = audit.duplicates
    kinds: list[Fields] = []
    sorts: Sequence[tuple[Any, str, str]] = (("exact", "Equal", "All pixels are equal, whatever the files' bytes."),)
    if found.near_searched:
        sorts = (
            *sorts,
            ("near", "Nearly equal", "Recompressed, cropped, brightened, mirrored, or one after the other."),
        )
    for kind, title, meaning in sorts:
        groups = found.of_kind(kind)
        shown = [_group_fields(group, captions) for group in groups[:NUM_GROUPS]]
        images = sum(len(group.rows) for group in groups)
        kinds.append(
            {
                "title": title,
                "meaning": meaning,
                "groups": shown,
                "number": many(len(groups), "group"),
                "images": f"{images:,}",
                "more": len(groups) - len(shown),
            }
        )
    crosses = sum(group.crosses for group in found.groups)
    contradicts = sum(bool(group.contradicts) for group in found.groups)
    return {"kinds": kinds, "crosses": crosses, "contradicts": contradicts, "near": found.near_searched}


def _group_fields(group: Group, captions: Captions) -> Fields:
    notes = []
    if group.contradicts:
        notes.append(f"labels contradict: {', '.join(group.contradicts)}")
    if group.crosses:
        notes.append("crosses train and test")
    alike = "" if group.kind == "exact" else f"{group.similarity:.1%} alike"
    return {
        "notes": notes,
        "alike": f"{alike}, {group.how}" if alike and group.how else alike or group.how,
        "items": [captions.of(row) for row in group.rows[:NUM_TWINS]],
        "more": max(0, len(group.rows) - NUM_TWINS),
        "number": len(group.rows),
    }


def drift_fields(audit: Audit, captions: Captions) -> Fields:
    """Return how far the test looks other than train; nothing where there is no test."""
    drift = audit.drift
    if drift is None:
        return {}
    gauges = [
        {
            "title": title,
            "value": f"{auc:.3f}",
            "at": f"{_on_gauge(auc):.1f}",
            "is_low": _on_gauge(auc) < 50,  # on which side of its marker the label has room
            "low": low,
            "high": high,
            "range": between,
        }
        for title, auc, low, high, between in (
            (
                "all properties",
                drift.auc,
                f"{_on_gauge(drift.low):.1f}",
                f"{_on_gauge(drift.high):.1f}",
                f"{drift.low:.3f} to {drift.high:.3f}",
            ),
            ("what the pixels show", drift.visible_auc, "", "", ""),
        )
        if not math.isnan(auc)
    ]
    suspects = sorted(drift.suspects.items(), key=lambda one: -one[1])[:NUM_SUSPECTS]
    return {
        "text": drift.text,
        "gauges": gauges,
        "counts": f"{drift.num_train:,} train and {drift.num_test:,} test images were compared.",
        "drifted": [
            {
                "name": one.name,
                "text": one.text,
                "distance": f"{one.distance:.3f}",
                "share": f"{min(one.distance, 1):.3f}",
                "leak": one.is_leak,
            }
            for one in drift.drifted
        ],
        "suspects": [captions.of(row, f"{chance:.0%} test") for row, chance in suspects],
    }


def _on_gauge(auc: float) -> float:
    """Return the place of an AUC in per cent, from 0.5 to 1."""
    return 0.0 if math.isnan(auc) else 100 * min(max((auc - 0.5) / 0.5, 0), 1)


def by_kind(findings: Sequence[Finding]) -> dict[Kind, list[Finding]]:
    """Return the findings of each kind, in their order."""
    found: dict[Kind, list[Finding]] = defaultdict(list)
    for finding in findings:
        found[finding.kind].append(finding)
    return dict(found)
