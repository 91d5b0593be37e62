"""The page of a fitted blend: one HTML file that shows what was chosen, why, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import kaggle_kit
from kaggle_kit.blending.diversity import Dispute, Diversity, Dropped, Opinion, where_they_disagree
from kaggle_kit.blending.pictures import as_picture, matrix_picture
from kaggle_kit.blending.plots import draw_frontier
from kaggle_kit.blending.strategies import MEANINGS
from kaggle_kit.decision import HALF, Decision
from kaggle_kit.files import replacing
from kaggle_kit.metrics import LOWER_IS_BETTER, PROBABILITY_METRICS
from kaggle_kit.mixes import Mix
from kaggle_kit.scores import Score
from kaggle_kit.task import Task
from kaggle_kit.train.outcome import NONE, Fields
from kaggle_kit.train.plots import shorten

if TYPE_CHECKING:
    from kaggle_kit.blending import Budget, FittedBlend
    from kaggle_kit.blending.choice import Choice
    from kaggle_kit.blending.prefixes import Shortfall
    from kaggle_kit.ensemble import Blend, Prefix


NUM_DISPUTES = 20
_MOST_STEPS = 3  # strategies of a head that are shown at once, beside the start and what is used
_MOST_LISTED = 3  # runs of a set that are named; of more the numbers are shown
_MOST_TITLED = 6  # columns with names above them; more have numbers
_TEMPLATE = "blend.html.j2"
_ALIKE, _APART = "#e5683b", "#3b82f6"


def write_blend_report(path: Path, *, task: Task, fitted: FittedBlend, budget: Budget | None = None) -> Path:
    """Write the page of a blend: one HTML file that loads nothing.

    Args:
        path: Of the page.
        task: Gives the metric and the heads.
        fitted: What was found. What it does not know, such as seconds, is left out, and the page says so.
        budget: What a submission may take; None: no hours are shown.

    Returns:
        The page's path.
    """
    with replacing(path) as temporary:
        temporary.write_text(_render(page_fields(task, fitted, budget)), encoding="utf-8")
    return path


def page_fields(task: Task, fitted: FittedBlend, budget: Budget | None) -> Fields:
    """Return all that the page says, as plain values."""
    names, diversity = fitted.blend.runs, fitted.diversity
    dropped = sorted(diversity.dropped, key=lambda one: -one.change) if diversity else []
    fields: Fields = {
        **_header_fields(task, fitted, budget),
        "notes": list(dict.fromkeys([*fitted.pool.notes, *fitted.notes])),
        "heads": list(task.heads),
        "runs": _numbered(names),
        **_step_fields(task, fitted.choice),
        **_weight_fields(task, fitted),
        "order": _order_rows(task, fitted, budget),
        **_cost_fields(fitted, budget),
        **_frontier_fields(task, fitted, budget),
        **_diversity_fields(diversity),
        "dropped": [_dropped_row(one) for one in dropped],
        "dropped_timed": any(one.seconds is not None for one in dropped),
        "disputes": [_dispute_row(one, names) for one in where_they_disagree(fitted.pool.of(names), NUM_DISPUTES)],
        "version": kaggle_kit.__version__,
    }
    places = (
        ("tried", "What was tried", fields["steps"]),
        ("weights", "Weights", True),
        ("order", "Running order", True),
        ("frontier", "Time and score", fields["frontier"]),
        ("diversity", "How runs differ", fields["alone"]),
        ("dropped", "Without each run", dropped),
        ("disputes", "Where they disagree", len(names) > 1),
    )
    return fields | {"sections": [(place, title) for place, title, shown in places if shown]}


def _render(fields: Fields) -> str:
    import jinja2

    text = resources.files("kaggle_kit.blending").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(text).render(fields)


def _numbered(names: Sequence[str]) -> list[Fields]:
    """Return a number for each run, its name, and the title of a narrow column."""
    few = len(names) <= _MOST_TITLED
    return [
        {"number": number, "name": name, "title": f"{number} {shorten(name)}" if few else number}
        for number, name in enumerate(names, start=1)
    ]


def _header_fields(task: Task, fitted: FittedBlend, budget: Budget | None) -> Fields:
    blend, score = fitted.blend, fitted.blend.score or fitted.scores.all
    spent = _seconds_after(blend)[-1]
    tiles = [("{:.4f} to {:.4f}".format(*score.interval), "95 % interval")] if score.interval else []
    used = sum(share > 0 for share in blend.shares().values())
    tiles += [(f"{score.rows:,}", "images scored"), (f"{used} of {len(fitted.pool.names)}", "runs with weight")]
    if spent is not None:
        tiles.append((_thousand(spent), "s for 1,000 images"))
        tiles += [(_hours(spent, budget), f"h for {budget.images:,} images")] if budget else []
    direction = ", lower is better" if task.metric in LOWER_IS_BETTER else ""
    title = "1 run" if len(blend.runs) == 1 else f"{len(blend.runs)} runs"
    return {
        "title": f"Blend of {title}",
        "subtitle": f"{task.name}: {_few(blend.runs)}",
        "headline": {"score": f"{score.total:.4f}", "meaning": f"{task.metric} out of fold{direction}", "tiles": tiles},
        "summary": _summary(task, fitted, score),
    }


def _few(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_TITLED
    return ", ".join(names[:_MOST_TITLED]) + (f" and {rest} more" if rest > 0 else "")


def _summary(task: Task, fitted: FittedBlend, score: Score) -> str:
    """Return in a sentence what was chosen, and what it gains over the best run alone."""
    heads: dict[str, list[str]] = {}
    for head in task.heads:
        heads.setdefault(_chosen(head, fitted), []).append(head)
    several = len(heads) > 1
    chosen = "; ".join(f"{', '.join(names)}: {what}" if several else what for what, names in heads.items())
    interval = " (95 % interval {:.4f} to {:.4f})".format(*score.interval) if score.interval else ""
    what = f"Chosen: {chosen}" if len(fitted.pool.names) > 1 else f"A single run, {fitted.pool.names[0]}"
    text = f"{what}. Out of fold it scores {task.metric} {score.total:.4f}{interval}"
    if len(fitted.alone) == 1:
        return f"{text}."
    rival, more = fitted.rival, fitted.rival.shortfall
    better = "better" if more.value >= 0 else "worse"
    interval = "{:+.4f} to {:+.4f}".format(*more.interval)
    alone = f"the best run alone, {rival.run}, by rules of its own ({rival.score.total:.4f})"
    return f"{text}. That is {abs(more.value):.4f} {better} ({interval}) than {alone}."


def _chosen(head: str, fitted: FittedBlend) -> str:
    kept = [step for step in fitted.steps if step.head == head and step.kept]
    if kept:
        step, total = kept[-1], len(fitted.pool.names)
        return f"{MEANINGS.get(step.name, step.name)} ({step.runs} of {_count(total, 'run')})"
    mix = _mix(fitted.blend.whole, head, len(fitted.blend.runs))
    return f"{mix.kind} mix of {_count(int(np.count_nonzero(mix.weights)) or len(fitted.blend.runs), 'run')}"


def _step_fields(task: Task, choice: Choice) -> Fields:
    steps = choice.steps
    best = {head: sorted(-s.gain for s in steps if s.head == head and s.over)[:_MOST_STEPS] for head in task.heads}
    rows = [
        {
            "head": step.head,
            "name": step.name,
            "meaning": MEANINGS.get(step.name, ""),
            "runs": step.runs,
            "value": f"{step.value:.4f}",
            "gain": f"{step.gain:+.4f}" if step.over else NONE,
            "interval": "{:+.4f} to {:+.4f}".format(*step.interval) if step.over else NONE,
            "over": step.over or NONE,
            "kept": step.kept,
            "shown": step.kept or not step.over or -step.gain in best.get(step.head, []),
            "why": step.why,
        }
        for step in steps
    ]
    meanings = {row["name"]: row["meaning"] for row in rows if row["meaning"]}
    ruled = ", after rules that decide were fitted to each" if choice.by_rules else ", by the highest probability"
    compared = "" if task.metric in PROBABILITY_METRICS else ruled
    return {"steps": rows, "meanings": list(meanings.items()), "compared": compared}


def _mix(prefix: Prefix, head: str, num_runs: int) -> Mix:
    return prefix.heads.get(head, Mix.equal(num_runs))


def _weight_fields(task: Task, fitted: FittedBlend) -> Fields:
    """Return a row a run: in running order, and after them those that are no part of the blend."""
    blend = fitted.blend
    mixes = {head: _mix(blend.whole, head, len(blend.runs)) for head in task.heads}
    shares = blend.shares()
    most = max(weight for mix in mixes.values() for weight in mix.weights or (1.0,))
    rows = [
        {
            "number": place + 1,
            "name": name,
            "cells": [_weight_cell(mix, place, most) for mix in mixes.values()],
            "share": _weight(shares[name]),
            "opacity": f"{shares[name] / most:.3f}",
        }
        for place, name in enumerate(blend.runs)
    ]
    blank = {"weight": NONE, "opacity": "0", "temperature": ""}
    unused = [name for name in fitted.pool.names if name not in blend.runs]
    left_out = {"number": "", "cells": [blank] * len(mixes), "share": NONE, "opacity": "0"}
    rows += [{**left_out, "name": name} for name in unused]
    kinds = [mix.kind for mix in mixes.values()]
    meaning = ["How much each run counts, the runs numbered in running order."]
    meaning += ["A stack is a linear model, which has no weights."] * ("stack" in kinds)
    if any(mix.temperatures for mix in mixes.values()):
        meaning.append("T: the temperature by which a run's logarithms are divided.")
    meaning += ["Runs without a number were given and are not used."] * bool(unused)
    return {"weights": rows, "kinds": kinds, "weights_meaning": " ".join(meaning)}


def _weight_cell(mix: Mix, place: int, most: float) -> Fields:
    weight = mix.weights[place] if mix.weights else None
    return {
        "weight": "model" if weight is None else _weight(weight),
        "opacity": "0" if weight is None else f"{weight / most:.3f}",
        "temperature": f"{mix.temperatures[place]:.2f}" if mix.temperatures else "",
    }


def _weight(value: float) -> str:
    return f"{value:.3f}" if value > 0 else "0"


def _order_rows(task: Task, fitted: FittedBlend, budget: Budget | None) -> list[Fields]:
    rows, blend = [], fitted.blend
    spent = _seconds_after(blend)
    for number, (name, prefix) in enumerate(zip(blend.runs, blend.prefixes, strict=True), start=1):
        score, seconds = prefix.score, spent[number - 1]
        late = budget is not None and seconds is not None and seconds > budget.seconds
        rows.append(
            {
                "number": number,
                "name": name,
                "seconds": _thousand(seconds),
                "hours": _hours(seconds, budget),
                "late": late,
                "in_time": NONE if seconds is None else "no" if late else "yes",
                "score": NONE if score is None else f"{score.total:.4f}",
                "interval": "{:.4f} to {:.4f}".format(*score.interval) if score and score.interval else NONE,
                "short": _short_by(fitted.shortfalls[number - 1] if number <= len(fitted.shortfalls) else None),
                "rule": _rule_lines(task, prefix.decision),
            }
        )
    return rows


def _short_by(one: Shortfall | None) -> str:
    return NONE if one is None else "{:+.4f} ({:+.4f}, {:+.4f})".format(one.value, *one.interval)


def _rule_lines(task: Task, decision: Decision) -> list[str]:
    """Return a line for each head with a fitted rule, and one for all others."""
    if task.metric in PROBABILITY_METRICS:
        return ["nothing: the metric is of probabilities"]
    fitted = {head: rule for head, rule in decision.heads.items() if not rule.is_plain}
    lines = [Decision(heads={head: rule}).describe() for head, rule in fitted.items()]
    kinds = {task.heads[head].kind == "multilabel" for head in task.heads if head not in fitted}
    plain = ["the highest probability"] * (False in kinds) + [f"a threshold of {HALF}"] * (True in kinds)
    if plain:
        lines.append(f"{'other heads: ' if lines else ''}{' or '.join(plain)} decides")
    return lines


def _seconds_after(blend: Blend) -> list[float | None]:
    """Return what an image takes after 1, 2, .. runs; None from the first run on of which that is not known."""
    spent: list[float | None] = []
    total: float | None = 0.0
    for name in blend.runs:
        total = None if total is None or name not in blend.seconds else total + blend.seconds[name]
        spent.append(total)
    return spent


def _cost_fields(fitted: FittedBlend, budget: Budget | None) -> Fields:
    costs = fitted.costs
    if costs is None:
        text = "Seconds are not known, so the order goes by scores alone."
    elif costs.measured_here:
        text = f"Seconds were measured here, on {costs.device}; on the competition's accelerator they are others."
    else:
        text = f"Seconds are those given for {costs.device}."
    limit = f"The budget is {budget.hours:g} h for {budget.images:,} images." if budget else ""
    return {
        "costs_meaning": f"{text} {limit}".strip(),
        "timed": bool(fitted.blend.seconds),
        "images": f"{budget.images:,}" if budget else "",
    }


def _frontier_fields(task: Task, fitted: FittedBlend, budget: Budget | None) -> Fields:
    points, blend = fitted.frontier, fitted.blend
    places = {name: str(number) for number, name in enumerate(blend.runs, start=1)}
    rows = [
        {
            "count": len(point.runs),
            "runs": ", ".join(
                point.runs if len(point.runs) <= _MOST_LISTED else (places.get(n, n) for n in point.runs)
            ),
            "names": ", ".join(point.runs),
            "seconds": _thousand(point.seconds),
            "hours": _hours(point.seconds, budget),
            "score": f"{point.score:.4f}",
            "nested": NONE if point.nested_score is None else f"{point.nested_score:.4f}",
            "chosen": frozenset(point.runs) == frozenset(blend.runs),
        }
        for point in points
    ]
    timed = bool(points) and points[0].seconds is not None
    spent = _seconds_after(blend) if timed else list(range(1, 1 + len(blend.runs)))
    prefixes = [
        (place, prefix.score.total)
        for place, prefix in zip(spent, blend.prefixes, strict=True)
        if place is not None and prefix.score
    ]
    figure = draw_frontier(
        points,
        metric=task.metric,
        chosen=blend.runs,
        prefixes=prefixes,
        num_images=budget.images if budget and timed else None,
        hours_budget=budget.hours if budget and timed else None,
    )
    text = f"{task.metric} over what runs take: {_count(len(rows), 'set')} of runs, from the quickest to the best"
    return {
        "frontier": rows,
        "frontier_picture": figure and as_picture(figure, text, prefix="time"),
    }


def _diversity_fields(diversity: Diversity | None) -> Fields:
    fields: Fields = {"alone": [], "matrices": []}
    if diversity is None or len(diversity.names) == 1:
        return fields
    names = diversity.names
    most = max(max(diversity.unique_right.values()), 1)
    alone = [
        {
            **run,
            "score": f"{diversity.scores[run['name']]:.4f}",
            "right": f"{diversity.unique_right[run['name']]:,}",
            "share": f"{diversity.unique_right[run['name']] / most:.3f}",
        }
        for run in _numbered(names)
    ]
    drawn = (
        ("Correlation of errors", diversity.error_correlation, _ALIKE, "{:.2f}"),
        ("Images decided differently", diversity.disagreement, _APART, "{:.1%}"),
    )
    matrices = [matrix_picture(names, *one, prefix=f"matrix{number}") for number, one in enumerate(drawn)]
    return {**fields, "alone": alone, "matrices": [one for one in matrices if one]}


def _dropped_row(one: Dropped) -> Fields:
    return {
        "name": one.run,
        "change": f"{one.change:+.4f}",
        "interval": "{:+.4f} to {:+.4f}".format(*one.interval),
        "seconds": _thousand(one.seconds),
        "verdict": one.verdict,
        "bad": one.interval[1] < 0,
    }


def _dispute_row(one: Dispute, names: Sequence[str]) -> Fields:
    """Return an image's row, with a line for each head on which runs disagree."""
    heads = [
        {"head": head, "truth": one.truth[head], "cells": [_opinion_cell(said[name]) for name in names]}
        for head, said in one.opinions.items()
        if len({opinion.said for opinion in said.values()}) > 1
    ]
    return {"id": one.id, "heads": heads}


def _opinion_cell(opinion: Opinion) -> Fields:
    return {"said": opinion.said, "chance": f"{opinion.chance:.0%}", "wrong": not opinion.right}


def _thousand(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1000 * seconds:,.1f}"


def _hours(seconds: float | None, budget: Budget | None) -> str:
    return NONE if seconds is None or budget is None else f"{seconds * budget.images / 3600:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
