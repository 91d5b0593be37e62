"""A picture of the frontier: what runs together score, and what time they take."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from kaggle_kit.blending.frontier import FrontierPoint
from kaggle_kit.errors import SettingError
from kaggle_kit.metrics import LOWER_IS_BETTER
from kaggle_kit.task import Metric
from kaggle_kit.train.plots import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_BLUE, _ORANGE, _RED = "#3b82f6", "#f08a24", "#e5484d"
_INK = "#0a0b0c"  # as `train.plots.to_svg` expects it
_DECADE = 10
_LEFT, _RIGHT = 0.23, 0.08  # what is left free beside the points, as shares of their span; a name needs room at left
# where a name may stand: how it is aligned with its point, and how far to the right and up it is moved
_SIDES = (("left", 6, -6), ("right", -6, 6), ("right", -6, -6), ("left", 6, 6), ("center", 0, 8), ("center", 0, -8))


def draw_frontier(
    points: Sequence[FrontierPoint],
    *,
    metric: Metric,
    chosen: Collection[str] = (),
    prefixes: Sequence[tuple[float, float]] = (),
    num_images: int | None = None,
    hours_budget: float | None = None,
) -> Figure | None:
    """Draw scores over the time that runs take, logarithmic where that spans more than a decade.

    A point is named by its run, or by how many runs it has, where there is room; the chosen one always.

    Args:
        points: From `find_frontier`; where it is not known what runs take, their number is drawn instead.
        metric: Of the scores.
        chosen: The runs of the blend; the point that has just these is marked by a ring.
        prefixes: (seconds an image, score) of the first run in running order, of the first two, and so on, drawn as a
            line of their own; where it is not known what runs take, (number of runs, score).
        num_images: Draws hours for so many images, rather than seconds for 1,000.
        hours_budget: Where the time runs out, as a vertical line; needs `num_images` and points with seconds.

    Returns:
        None where there are no points.

    Raises:
        SettingError: When a budget is given and the number of images, or what runs take, is not known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not points:
        return None
    timed = points[0].seconds is not None
    if hours_budget is not None and (num_images is None or not timed):
        lacking = "the number of images" if timed else "what runs take"
        raise SettingError(f"`hours_budget` is {hours_budget}, and {lacking} is not known; give it, or leave both out")
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    axes = figure.subplots()
    scale = 1.0 if not timed else 1000.0 if num_images is None else num_images / 3600
    places = [scale * (len(point.runs) if point.seconds is None else point.seconds) for point in points]
    ends = [scale * seconds for seconds, _ in prefixes]
    _draw_lines(axes, points, places, list(zip(ends, [score for _, score in prefixes], strict=True)))
    _draw_limits(axes, [*places, *ends], hours_budget)
    hours = f"hours for {num_images:,} images" if num_images is not None else "seconds for 1,000 images"
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    _plain_axes(axes, across=hours if timed else "runs", up=f"{metric} ({direction} is better)")
    figure.legend(loc="outside lower left", ncols=4, fontsize=9, frameon=False, labelcolor=_INK)
    figure.draw_without_rendering()  # else the axes are not yet where they will be
    _name_points(axes, points, places, chosen)
    return figure


def _draw_lines(
    axes: Axes, points: Sequence[FrontierPoint], places: Sequence[float], prefixes: Sequence[tuple[float, float]]
) -> None:
    if prefixes:
        axes.plot(
            *zip(*prefixes, strict=True), color=_ORANGE, linewidth=1.3, marker="s", markersize=3, label="running order"
        )
    nested = [float("nan") if point.nested_score is None else point.nested_score for point in points]
    if any(value == value for value in nested):
        axes.plot(places, nested, color=_BLUE, linewidth=1.2, linestyle=":", marker=".", markersize=3, label="nested")
    scores = [point.score for point in points]
    axes.plot(places, scores, color=_BLUE, linewidth=1.6, marker="o", markersize=4, label="best mean for its time")


def _draw_limits(axes: Axes, places: Sequence[float], hours_budget: float | None) -> None:
    """Choose the scale, and draw where the time runs out."""
    if hours_budget is not None:
        axes.axvline(hours_budget, color=_RED, linewidth=1.2, linestyle="--", label=f"limit: {hours_budget:g} h")
        places = [*places, hours_budget]
    axes.margins(x=0.1, y=0.14)
    low, high = min(places), max(places)
    if high > _DECADE * low:
        axes.set_xscale("log")
        axes.set_xlim(low * (low / high) ** _LEFT, high * (high / low) ** _RIGHT)
    elif high > low:
        axes.set_xlim(max(0, low - _LEFT * (high - low)), high + _RIGHT * (high - low))


def _plain_axes(axes: Axes, *, across: str, up: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        steps = (1.0, 2.0, 5.0) if high < low * _DECADE**3 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=across == "runs"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    axes.set_xlabel(across, fontsize=9, color=_INK)
    axes.set_ylabel(up, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.7)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=_INK, alpha=0.35)


def _name_points(axes: Axes, points: Sequence[FrontierPoint], places: Sequence[float], chosen: Collection[str]) -> None:
    """Name points where nothing is in the way: the chosen one first, then both ends, single runs and the others."""
    marked = [number for number, point in enumerate(points) if set(point.runs) == set(chosen)]
    for number in marked:
        axes.plot(places[number], points[number].score, "o", markersize=11, markerfacecolor="none", color=_RED)
    single = [number for number, point in enumerate(points) if len(point.runs) == 1]
    taken: list[Bbox] = []
    for number in dict.fromkeys([*marked, 0, len(points) - 1, *single, *range(len(points))]):
        text = _name(points[number], number, is_chosen=number in marked)
        _name_point(axes, (places[number], points[number].score), text, taken, always=number in marked)


def _name(point: FrontierPoint, number: int, *, is_chosen: bool) -> str:
    if len(point.runs) > 1:
        name = f"{len(point.runs)} runs"
    else:  # the font may lack what is not ASCII
        name = shorten(point.runs[0]) if point.runs[0].isascii() else f"run of point {number + 1}"
    return f"{name}, chosen" if is_chosen else name


def _name_point(axes: Axes, place: tuple[float, float], text: str, taken: list[Bbox], *, always: bool) -> None:
    """Write a name on the first side of its point where it covers nothing; on none if all do, unless it must be."""
    for number, (align, right, up) in enumerate(_SIDES, start=1):
        name = axes.annotate(
            text,
            place,
            (right, up),
            textcoords="offset points",
            ha=align,
            va="bottom" if up > 0 else "top",
            fontsize=8,
            color=_INK,
            parse_math=False,
        )
        name.set_in_layout(False)
        box = name.get_window_extent()
        if _is_free(axes, name, box, taken) or (always and number == len(_SIDES)):
            taken.append(box)
            return
        name.remove()


def _is_free(axes: Axes, name: Annotation, box: Bbox, taken: Sequence[Bbox]) -> bool:
    frame = axes.get_window_extent()
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    crossed = any(
        line.get_path().transformed(line.get_transform()).intersects_bbox(box, filled=False)
        for line in axes.get_lines()
    )
    return inside and not crossed and not any(box.overlaps(other) for other in taken)
