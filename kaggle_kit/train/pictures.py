"""Pictures of what the network is shown: augmented images, and mixed batches with their targets."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from kaggle_kit.files import replacing
from kaggle_kit.labels import Labels
from kaggle_kit.pixels import Image
from kaggle_kit.sources import PackedSource
from kaggle_kit.task import Head, Task
from kaggle_kit.train.augment import Augment, make_augment
from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.losses import Targets, soft_targets
from kaggle_kit.train.mixing import Mixer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = npt.NDArray[np.int64]
Mixed = Mapping[str, tuple[torch.Tensor, Targets]]  # {how it was mixed: (B, H, W, C) images, their targets}
PANEL = 1.35  # inches, the longer side of an image
LEAST_WIDTH = 0.75  # inches, of a panel
LINE, CHARACTER = 0.15, 0.058  # inches, of text
FONT, DPI = 7, 130
ID_LENGTH, HEAD_LENGTH, CLASS_LENGTH = 32, 20, 14
FRAME = 200  # gray level
TOP = 3
LEAST_SHARE = 0.005  # what would be written as 0.00 is left out
MIXED_COLUMNS = 4
MIXED_STEPS = 2000  # among so many, a batch of each kind that is on is looked for


def draw_augment_sheet(
    augment: Augment, images: Image, titles: Sequence[str], *, seed: int, num_versions: int = 7
) -> Figure:
    """Draw a row an image: as it is stored, then versions of it.

    Args:
        augment: What makes them.
        images: (N, H, W, C) uint8, N at least 1.
        titles: N lines, one over each row; cut where they are longer than it.
        seed: Same seed, same versions.
        num_versions: How many of each image.
    """
    columns = [images, *(augment(images, seed=seed + version) for version in range(num_versions))]
    figure, grid = _grid(_panel_size(images), rows=len(images), columns=len(columns), lines_above=1)
    longest = int(len(columns) * _panel_size(images)[1] / CHARACTER)
    for row, (panels, title) in enumerate(zip(grid, titles, strict=True)):
        for panel, column in zip(panels, columns, strict=True):
            _show(panel, column[row])
        _write(panels[0], 0, 1, _cut(title, longest), above=True)
    return figure


def draw_mixed_sheet(task: Task, images: Image, mixed: Mixed, *, columns: int = MIXED_COLUMNS) -> Figure:
    """Draw a batch before and after mixing, side by side, with the targets below.

    Args:
        task: Names heads and classes.
        images: (N, H, W, C) uint8: the batch before.
        mixed: {how: the batch after, 0 to 255, and for each trained head its (N, classes) targets}.
        columns: How many pairs stand side by side.
    """
    columns = min(columns, len(images))
    sheets = [(how, row, batch) for how, batch in mixed.items() for row in range(len(images))]
    texts = [f"{how}\n{_target_text(task, batch[1], row)}" for how, row, batch in sheets]
    height, width = _panel_size(images)
    widest = max(len(line) for text in texts for line in text.split("\n")) * CHARACTER
    rows = -(-len(images) // columns)
    below = max(text.count("\n") for text in texts) + 1
    size = (height, max(2 * width, widest))
    figure, grid = _grid(size, rows=rows * len(mixed), columns=columns, lines_below=below)
    for place, ((_, row, (after, _)), text) in enumerate(zip(sheets, texts, strict=True)):
        sheet, within = divmod(place, len(images))
        panel = grid[sheet * rows + within // columns][within % columns]
        whole = np.clip(np.rint(after[row].cpu().double().numpy()), 0, 255).astype(np.uint8)
        gap = np.full((images.shape[1], max(1, images.shape[2] // 48), images.shape[3]), FRAME, np.uint8)
        _show(panel, np.concatenate([images[row], gap, whole], axis=1))
        _write(panel, 0, 0, text, above=False)
    return figure


def save_augment_sheet(
    path: Path, augment: Augment, images: Image, titles: Sequence[str], *, seed: int, num_versions: int = 7
) -> None:
    """Write what `draw_augment_sheet` draws to a PNG."""
    _save(draw_augment_sheet(augment, images, titles, seed=seed, num_versions=num_versions), path)


def save_mixed_sheet(path: Path, task: Task, images: Image, mixed: Mixed, *, columns: int = MIXED_COLUMNS) -> None:
    """Write what `draw_mixed_sheet` draws to a PNG."""
    _save(draw_mixed_sheet(task, images, mixed, columns=columns), path)


def show_augment(
    task: Task,
    config: TrainConfig,
    source: PackedSource,
    labels: Labels,
    *,
    out: Path,
    num_images: int = 8,
    num_versions: int = 7,
) -> list[Path]:
    """Write pictures of what these settings show the network.

    Args:
        task: The competition, its auxiliary heads' classes resolved.
        config: Its `augment`, `mix` and `seed` count; another seed shows other images.
        source: The train images.
        labels: Aligned with the source.
        out: The PNG of augmented images. Where batches are mixed, one of them by each kind that is on is drawn beside
            it, in a file with `_mixed` added to the name.
        num_images: How many images, at least 1.
        num_versions: How many versions of each.

    Returns:
        The files written.

    Raises:
        SettingError: For a list of one's own that cannot be used.
    """
    augment = make_augment(config, task)
    rng = np.random.default_rng((config.seed, 4))
    rows = np.sort(rng.choice(len(source), min(num_images, len(source)), replace=False)).astype(np.int64)
    images = source.take(rows)
    titles = [image_title(task, labels, int(row)) for row in rows]
    save_augment_sheet(out, augment, images, titles, seed=config.seed, num_versions=num_versions)
    batch = augment(images, seed=config.seed)
    mixed = _mix_each_way(config, torch.from_numpy(batch), soft_targets(task, _label_tensors(labels, rows)))
    if not mixed:
        return [out]
    beside = out.with_name(f"{out.stem}_mixed{out.suffix}")
    save_mixed_sheet(beside, task, batch, mixed)
    return [out, beside]


def image_title(task: Task, labels: Labels, row: int) -> str:
    """Return an image's id and its classes in one line, such as `Train_3   root 12, vowel 7`."""
    parts = []
    known = {**labels.classes, **labels.auxiliary}
    for name, head in task.trained_heads.items():
        value = known[name][row]
        chosen = np.flatnonzero(value) if np.ndim(value) else [int(value)]
        shown = " + ".join("unknown" if index < 0 else _class_text(head, int(index)) for index in chosen)
        parts.append(f"{_cut(name, HEAD_LENGTH)} {shown or 'none'}")
    return f"{_cut(str(labels.ids[row]), ID_LENGTH)}   {', '.join(parts)}"


def _mix_each_way(config: TrainConfig, images: torch.Tensor, targets: Targets) -> Mixed:
    mixer = Mixer(config.mix, seed=config.seed, num_steps=MIXED_STEPS)
    mixed: dict[str, tuple[torch.Tensor, Targets]] = {}
    for step in range(MIXED_STEPS if len(images) > 1 else 0):
        kind = mixer.kind(step)
        if kind is not None and kind not in mixed:
            mixed[kind] = mixer(images, targets, step=step)
    return dict(sorted(mixed.items()))


def _label_tensors(labels: Labels, rows: Ints) -> dict[str, torch.Tensor]:
    known = {**labels.classes, **labels.auxiliary}
    return {
        head: torch.from_numpy(values[rows].astype(np.float32 if values.ndim == 2 else np.int64))
        for head, values in known.items()
    }


def _target_text(task: Task, targets: Targets, row: int) -> str:
    """Return a line a head: its likeliest classes and their shares."""
    lines = []
    for name, head in task.trained_heads.items():
        shares = targets[name][row].cpu().double().numpy()
        best = [index for index in np.argsort(-shares, kind="stable")[:TOP] if shares[index] >= LEAST_SHARE]
        shown = " / ".join(f"{_class_text(head, int(index))}: {shares[index]:.2f}" for index in best)
        rest = int((shares >= LEAST_SHARE).sum()) - len(best)
        more = f" + {rest} more" if rest else ""
        lines.append(f"{_cut(name, HEAD_LENGTH)} {shown or 'unknown'}{more}")
    return "\n".join(lines)


def _class_text(head: Head, index: int) -> str:
    """Return a class's name, or its number where the font has no letters for it."""
    name = head.class_names[index]
    return _cut(name, CLASS_LENGTH) if all(ord(letter) in _known_letters() for letter in name) else f"#{index}"


@functools.cache
def _known_letters() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _panel_size(images: Image) -> tuple[float, float]:
    """Return an image's (height, width) in inches."""
    height, width = images.shape[1:3]
    scale = PANEL / max(height, width)
    return height * scale, max(LEAST_WIDTH, width * scale)


def _grid(
    size: tuple[float, float], *, rows: int, columns: int, lines_above: int = 0, lines_below: int = 0
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with panels of this (height, width) in inches, and room for text above or below each."""
    from matplotlib.figure import Figure

    gap = 0.08
    above, below = lines_above * LINE + gap, lines_below * LINE + gap
    step_y, step_x = size[0] + above + below, size[1] + gap
    height, width = rows * step_y, columns * step_x + gap
    figure = Figure(figsize=(width, height))
    grid = []
    for row in range(rows):
        bottom = height - row * step_y - above - size[0]
        places = [(gap + column * step_x, bottom, size[1], size[0]) for column in range(columns)]
        grid.append([figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in places])
        for panel in grid[-1]:
            panel.set_axis_off()  # of those that stay empty; `_show` puts a frame around the others
    return figure, grid


def _show(panel: Axes, image: Image) -> None:
    shown = image[..., 0] if image.shape[-1] == 1 else image
    panel.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    panel.set_anchor("NW")
    panel.set_axis_on()
    panel.set(xticks=[], yticks=[])
    for line in panel.spines.values():
        line.set(color=str(FRAME / 255), linewidth=0.6)


def _write(panel: Axes, x: float, y: float, text: str, *, above: bool) -> None:
    """Write text over or under a panel, from its left edge on; letters that the font has not become `?`."""
    panel.annotate(
        "".join(letter if letter == "\n" or ord(letter) in _known_letters() else "?" for letter in text),
        (x, y),
        xycoords="axes fraction",
        xytext=(0, 3 if above else -3),
        textcoords="offset points",
        va="bottom" if above else "top",
        fontsize=FONT,
        parse_math=False,
        fontfamily="DejaVu Sans",
    )


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
