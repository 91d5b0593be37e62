"""The page of a finished run: run.html, which one opens in a browser, and its pictures as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

import kaggle_kit
from kaggle_kit.entries import settings_of
from kaggle_kit.errors import DataError, KitError
from kaggle_kit.files import replacing
from kaggle_kit.metrics import LOWER_IS_BETTER, confusion_matrix
from kaggle_kit.pixels import Image
from kaggle_kit.runs import EVERYTHING, HISTORY, FoldSummary, Run, fold_folder, read_run
from kaggle_kit.scores import Score
from kaggle_kit.sources import PackedSource
from kaggle_kit.tables import Text, rows_of
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.logs import read_history
from kaggle_kit.train.outcome import NONE, Fields, Outcome, answer_fields, data_uri, head_section, image_losses
from kaggle_kit.train.plots import (
    Histories,
    confusion_file,
    draw_confusion,
    draw_curves,
    save_figure,
    to_svg,
)

PAGE = "run.html"
PLOTS = "plots"
CURVES = "curves.png"
NUM_LOSSES = 24
_TEMPLATE = "run.html.j2"
_THUMBNAIL_SIDE = 160


def write_report(run_folder: Path) -> Path:
    """Write a finished run's page, `run.html`, and its pictures, `plots/curves.png` and `plots/confusion_HEAD.png`.

    The page is one file that loads nothing. What is gone by now, such as the labels or the packed images, is left out,
    and the page says so.

    Returns:
        The page's path.

    Raises:
        DataError: When the folder holds no finished run.
    """
    run = read_run(run_folder)
    outcome, notes = _outcome(run)
    histories = {_title(fold): read_history(fold_folder(run.folder, fold) / HISTORY) for fold in run.folds}
    curves = draw_curves(
        histories,
        metric=run.task.metric,
        kept={_title(fold): (summary.epoch, summary.weights) for fold, summary in run.folds.items()},
    )
    sections = [] if outcome is None else [head_section(head, run, outcome) for head in run.task.heads.values()]
    fields = {
        **_header_fields(run, sections, with_losses=outcome is not None),
        "notes": notes,
        "folds": [_fold_row(run, fold, summary, histories[_title(fold)]) for fold, summary in run.folds.items()],
        "speeds": any("waiting" in columns for columns in histories.values()),
        "curves": curves and to_svg(curves),
        "curves_width": 0 if curves is None else int(curves.get_figwidth() * 96),
        "curves_meaning": _curves_meaning(histories),
        "head_sections": sections,
        **_loss_fields(run, outcome),
    }
    if curves is not None:
        save_figure(curves, run.folder / PLOTS / CURVES)
    if outcome is not None:
        _save_confusions(run, outcome)
    with replacing(run.folder / PAGE) as temporary:
        temporary.write_text(_render(fields), encoding="utf-8")
    return run.folder / PAGE


def _render(fields: Fields) -> str:
    import jinja2
    from markupsafe import Markup

    text = resources.files("kaggle_kit.train").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    svg = fields["curves"]  # ours: it holds folds' numbers and a metric's name, and no text from files
    return environment.from_string(text).render({**fields, "curves": svg and Markup(svg)})  # noqa: S704


def _outcome(run: Run) -> tuple[Outcome | None, list[str]]:
    """Return what the run says of its images, and what the page has to say about that."""
    notes = []
    if EVERYTHING in run.folds:
        notes.append(
            "Trained on everything, so no image is left to score it on: the scores and all that follows from them are "
            f"those of {run.like or 'the run'}, whose settings it took."
        )
    try:
        oof = run.oof()
        labels = run.labels().align(oof.ids)
        folds = run.fold_table()
        unseen = folds.unseen[folds.rows(oof.ids)]
    except KitError as error:
        return None, [*notes, f"What each class scores, and on which images, is left out: {error}."]
    return Outcome(ids=oof.ids, truth=labels.classes, probs=oof.probs, unseen=unseen), notes


def _title(fold: int) -> str:
    return "everything" if fold == EVERYTHING else f"fold {fold}"


def _header_fields(run: Run, sections: Sequence[Fields], *, with_losses: bool) -> Fields:
    metric, score = run.task.metric, run.score
    direction = ", lower is better" if metric in LOWER_IS_BETTER else ""
    minutes = sum(summary.seconds for summary in run.folds.values())
    when = run.created.replace("T", " ").replace("+00:00", " UTC")
    places = [("scores", "Scores"), ("settings", "Settings"), ("folds", "Folds"), ("curves", "Curves")]
    places += [(section["id"], section["title"]) for section in sections]
    places += [("losses", "Highest losses")] if with_losses else []
    changed, settings = _settings(run.config)
    low_high = "{:.4f} to {:.4f}".format(*score.interval) if score.interval else ""
    return {
        "title": run.name,
        "subtitle": f"{run.config.model.name} on {run.task.name}, ended {when}, run {run.id}",
        "sections": [*places, ("environment", "Environment")],
        "headline": {
            "score": f"{score.total:.4f}",
            "meaning": f"{metric} out of fold{direction}",
            "tiles": [
                *([(low_high, "95 % interval")] if low_high else []),
                (f"{score.rows:,}", "images scored"),
                (len(run.folds), "fold" if len(run.folds) == 1 else "folds"),
                (_duration(minutes), "training time"),
            ],
        },
        "heads": list(run.task.heads),
        "scores": _score_rows(run),
        "scores_meaning": _scores_meaning(run),
        "changed": changed,
        "settings": settings,
        "environment": _environment(run),
        "version": kaggle_kit.__version__,
    }


def _score_rows(run: Run) -> list[Fields]:
    parts: dict[str, Score | None] = {"all": run.scores.all, "seen": run.scores.seen, "unseen": run.scores.unseen}
    rows = []
    for name, score in parts.items():
        if score is None or (name == "seen" and run.scores.unseen is None):  # then all of them are
            continue
        between = {head: f"{low:.4f} to {high:.4f}" for head, (low, high) in score.head_intervals.items()}
        rows.append(
            {
                "name": name,
                "images": f"{score.rows:,}",
                "total": f"{score.total:.4f}",
                "interval": "{:.4f} to {:.4f}".format(*score.interval) if score.interval else "",
                "heads": [{"value": f"{score.heads[h]:.4f}", "interval": between.get(h, "")} for h in run.task.heads],
            }
        )
    return rows


def _scores_meaning(run: Run) -> str:
    text = "All validation images at once, each scored by the network that was not trained on it."
    if run.scores.unseen is not None:
        text += " Unseen: no train image of the fold shows the image's combination of labels."
    if len(run.task.heads) > 1:
        weights = ", ".join(f"{name} {head.weight:g}" for name, head in run.task.heads.items())
        text += f" The total weighs the heads: {weights}."
    return text


def _curves_meaning(histories: Histories) -> str:
    text = "A line a fold; a ring marks the epoch whose weights were kept."
    drawn = {name for columns in histories.values() for name in columns}
    if "ema" in drawn:
        text += " Dashed: the moving average of the weights (ema)."
    if "swa" in drawn:
        text += " Dotted: their stochastic average (swa)."
    return text


def _settings(config: TrainConfig) -> tuple[list[Fields], list[Fields]]:
    """Return the settings that differ from the defaults, and all of them."""
    defaults = settings_of(TrainConfig())
    here = settings_of(config)
    rows = [
        {"key": key, "value": _shown(here.get(key)), "default": _shown(defaults[key]) if key in defaults else NONE}
        for key in {**here, **defaults}
    ]
    return [row for row in rows if row["value"] != row["default"]], rows


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _fold_row(run: Run, fold: int, summary: FoldSummary, columns: Mapping[str, Sequence[float]]) -> Fields:
    score = summary.score
    epochs = len(columns.get("epoch", [])) or run.config.epochs
    return {
        "name": _title(fold),
        "epoch": f"{summary.epoch} of {epochs}",
        "weights": summary.weights,
        "stopped": summary.stopped,
        "score": NONE if score is None else f"{score.total:.4f}",
        "heads": [NONE if score is None else f"{score.heads[head]:.4f}" for head in run.task.heads],
        "images": NONE if score is None else f"{score.rows:,}",
        "time": _duration(summary.seconds),
        "speed": _median(columns.get("images_per_second", []), "{:,.0f}"),
        "waiting": _median(columns.get("waiting", []), "{:.0%}"),
    }


def _median(values: Sequence[float], form: str) -> str:
    finite = np.array(values, float)[np.isfinite(values)]
    return form.format(float(np.median(finite))) if len(finite) else NONE


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _environment(run: Run) -> list[tuple[str, str]]:
    rows = [*run.environment.items(), ("data", str(run.data)), ("packed images", str(run.packed))]
    try:
        folds = run.fold_table()
    except (KitError, OSError):
        return rows
    return [*rows, ("folds", f"{folds.scheme} {folds.num_folds}, seed {folds.seed}, labels {folds.data_hash}")]


def _loss_fields(run: Run, outcome: Outcome | None) -> Fields:
    """Return the images of highest loss, highest first, with what was said of them."""
    fields: Fields = {"losses": [], "no_pictures": "", "losses_meaning": ""}
    if outcome is None:
        return fields
    losses = image_losses(run.task, outcome)
    worst = np.argsort(-losses, kind="stable")[:NUM_LOSSES]
    pictures, fields["no_pictures"] = _thumbnails(run, outcome.ids[worst])
    fields["losses_meaning"] = (
        "Images whose truth was thought least likely, by cross entropy over the heads with their weights. A wrong "
        "label looks like this, too."
    )
    fields["losses"] = [
        {
            "id": str(outcome.ids[row]),
            "loss": f"{losses[row]:.2f}",
            "unseen": bool(outcome.unseen[row]),
            "picture": pictures.get(str(outcome.ids[row]), ""),
            "heads": [answer_fields(head, run, outcome, row) for head in run.task.heads.values()],
        }
        for row in worst
    ]
    return fields


def _thumbnails(run: Run, ids: Text) -> tuple[dict[str, str], str]:
    """Return {id: picture}, and why there are none, or fewer."""
    try:
        store = PackedSource(run.packed)
        if store.key != run.packed_key:
            raise DataError(f"packed store {run.packed} was packed anew since")
        rows = rows_of(ids, store.ids)
        images = {str(store.ids[row]): store.read(int(row)) for row in rows if row >= 0}
    except KitError as error:
        return {}, f"Without pictures: {error}."
    return {name: data_uri(_thumbnail(image), ".jpg") for name, image in images.items()}, ""


def _thumbnail(image: Image) -> Image:
    """Return an (H, W, C) RGB or gray image as OpenCV writes it, its longer side at most 160 pixels."""
    import cv2

    scale = min(1.0, _THUMBNAIL_SIDE / max(image.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    drawn = image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return np.asarray(cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _save_confusions(run: Run, outcome: Outcome) -> None:
    for name, head in run.task.heads.items():
        if head.kind == "multilabel":
            continue
        matrix = confusion_matrix(outcome.truth[name], outcome.probs[name].argmax(axis=1), head.num_classes)
        title = f"{name}: {run.task.metric} {run.score.heads[name]:.4f}"
        figure = draw_confusion(matrix, head.class_names, title=title if title.isascii() else run.task.metric)
        save_figure(figure, run.folder / PLOTS / confusion_file(name))
