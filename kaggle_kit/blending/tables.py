"""Tables of a fitted blend for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kaggle_kit.blending.choice import Choice, Step
from kaggle_kit.blending.strategies import MEANINGS
from kaggle_kit.ensemble import Blend

if TYPE_CHECKING:
    from kaggle_kit.blending import FittedBlend

_MOST_SHOWN = 4  # strategies of a head beside the start


def format_runs(found: FittedBlend) -> list[str]:
    """Return one row a run that was given: its score alone, what it takes, and what became of it."""
    width = max(3, *(len(name) for name in found.alone))
    task = found.pool.task
    lines = [f"runs, each alone by the highest probability ({task.metric} of {len(found.pool):,} images):"]
    for name, score in found.alone.items():
        used = "used" if name in found.blend.runs else "not used"
        seconds = found.costs.seconds.get(name) if found.costs else None
        time = f"  {1000 * seconds:>9.4g} s for 1,000" if seconds is not None else ""
        lines.append(f"{name:<{width}}  {score:.4f}{time}  {used}")
    return lines


def format_steps(choice: Choice) -> list[str]:
    """Return what was tried: of each head the start, what gains most and what is used; and what that means."""
    width = max(len("head"), *(len(step.head) for step in choice.steps))
    titles = f"{'strategy':<17}{'runs':>5}  {'nested':>8}  {'gain':>8}  {'95 % interval':>18}  use it?"
    scored = "by rules that decide" if choice.by_rules else "by the highest probability"
    lines = [
        f"what was tried, each image mixed by what was fitted without its fold, and scored {scored}:",
        f"{'head':<{width}}  {titles}",
    ]
    shown = [step for head in choice.strategies for step in _worth_showing(choice, head)]
    for step in shown:
        gains = f"{'':>8}  {'(start)':>18}"
        if step.over:
            gains = f"{step.gain:>+8.4f}  {'{:+.4f} to {:+.4f}'.format(*step.interval):>18}"
        lines.append(
            f"{step.head:<{width}}  {step.name:<17}{step.runs:>5}  {step.value:>8.4f}  {gains}  "
            f"{'yes' if step.kept else 'no'}: {step.why}"
        )
    if len(shown) < len(choice.steps):
        lines.append(f"({len(choice.steps) - len(shown)} more on the page)")
    used = {name: [h for h, own in choice.strategies.items() if own == name] for name in choice.strategies.values()}
    lines += [f"{', '.join(heads)}: {MEANINGS[name]}" for name, heads in used.items()]
    if choice.untried:
        lines.append(f"not tried on so many probabilities: {', '.join(choice.untried)}; ask for one by --method")
    return lines


def _worth_showing(choice: Choice, head: str) -> list[Step]:
    """Return a head's start, what is used, and what gains most, in the order of the gain."""
    steps = [step for step in choice.steps if step.head == head]
    ranked = sorted(steps, key=lambda step: (bool(step.over), -step.gain))
    return [step for place, step in enumerate(ranked) if place <= _MOST_SHOWN or step.kept]


def format_weights(blend: Blend) -> list[str]:
    """Return one row a run, in running order, with its weight and temperature in each head."""
    heads = blend.whole.heads
    width = max(3, *(len(name) for name in blend.runs))
    columns = {head: max(8, len(head)) for head in heads}
    lines = ["weights, in running order:"]
    lines.append(f"{'run':<{width}}  " + "  ".join(f"{head:>{size}}" for head, size in columns.items()))
    for row, name in enumerate(blend.runs):
        cells = []
        for head, size in columns.items():
            mix = heads[head]
            text = f"{mix.weights[row]:.3f}" if mix.weights else "stacked"
            cells.append(f"{text + (f' T{mix.temperatures[row]:.2f}' if mix.temperatures else ''):>{size}}")
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
    return lines


def format_order(found: FittedBlend, *, images: int | None = None) -> list[str]:
    """Return one row a prefix of the running order: what a kernel that is cut short there scores.

    Args:
        found: Whose prefixes.
        images: For how many images hours are shown; None: seconds for 1,000.
    """
    blend = found.blend
    width = max(len("after"), *(len(name) for name in blend.runs))
    unit = f"hours for {images:,}" if images else "s for 1,000"
    size = max(9, len(unit))
    titles = f"{'out of fold':>11}  {'short by':>9}  {'95 % interval':>18}  decides"
    lines = [
        "what a kernel gets that stops after so many runs, each decided by rules of its own:",
        f"{'after':<{width}}  {unit:>{size}}  {titles}",
    ]
    taken = 0.0
    for number, (name, prefix) in enumerate(zip(blend.runs, blend.prefixes, strict=True)):
        taken += blend.seconds.get(name, 0.0)
        amount = (f"{taken * images / 3600:.3g}" if images else f"{taken * 1000:.4g}") if blend.seconds else "not known"
        value = f"{prefix.score.total:.4f}" if prefix.score else ""
        short = f"{'':>9}  {'(all of it)':>18}"
        if number < len(found.shortfalls):
            one = found.shortfalls[number]
            short = f"{one.value:>+9.4f}  {'{:+.4f} to {:+.4f}'.format(*one.interval):>18}"
        rules = "the highest probability" if prefix.decision.is_plain else "fitted rules"
        lines.append(f"{name:<{width}}  {amount:>{size}}  {value:>11}  {short}  {rules}")
    return [*lines, *_advice(found)]


def _advice(found: FittedBlend) -> list[str]:
    """Say where fewer runs do as well."""
    enough = next((number for number, one in enumerate(found.shortfalls, start=1) if one.is_tie), None)
    if enough is None:
        return []
    runs, seconds = found.blend.runs, found.blend.seconds
    share = ""
    if seconds:
        share = f" in {sum(seconds[name] for name in runs[:enough]) / sum(seconds.values()):.0%} of the time"
    return [f"the first {enough} of {len(runs)} score as well within luck{share}; blend them alone to keep to them"]
