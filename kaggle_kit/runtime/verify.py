"""A bundle looked at as a whole, wherever it lies: every byte, every graph, every cut of the blend.

Runs where torch, onnx and pandas are not installed, so that a bundle can be checked on Kaggle after its upload.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kaggle_kit.ensemble import Blend, blend_probs, mean_probs
from kaggle_kit.errors import BundleError, brief, some_of
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import SUM_TOLERANCE, Probs
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import FORMAT, MANIFEST, Bundle, Fused, Golden, Member, open_bundle
from kaggle_kit.runtime.golden import (
    Distance,
    check_distance,
    decode_golden,
    furthest,
    furthest_blend,
    furthest_run,
    pixel_difference,
    read_golden,
)
from kaggle_kit.runtime.predictor import BATCH
from kaggle_kit.runtime.progress import print_line
from kaggle_kit.task import Task

GRAPHS = ".onnx"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was checked and found right.

    Attributes:
        what: Such as a file's name.
        found: What is right about it.
        difference: How far its probabilities are from where they should be; None where nothing was compared.
    """

    what: str
    found: str
    difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A bundle in which nothing was found wrong.

    Attributes:
        folder: Where it lies.
        rows: What was checked, in order.
        notes: What is no fault and worth knowing: files that are no part of it.
        images: Golden images that everything was run on.
        tolerance: How far their probabilities may be from home's.
        difference: How far a run's, or the fused graph's, are at most.
    """

    folder: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    images: int
    tolerance: float
    difference: float


def verify_bundle(folder: Path, *, say: Callable[[str], object] = print_line) -> Verified:
    """Check everything about a bundle that can be checked without the runs it was made from.

    Args:
        folder: The bundle; nothing is written to it.
        say: Where a line goes for each graph that is about to be run.

    Raises:
        BundleError: Naming the first thing that is wrong: a file, run, head or golden image.
    """
    bundle = open_bundle(folder)
    _check_graphs_listed(bundle)
    _check_priors(bundle)
    golden = read_golden(bundle)
    images = decode_golden(golden, bundle.task)
    pixels = pixel_difference(images, golden.images)
    rows = [*_describe_files(bundle), Row(what="golden images", found=_describe_images(len(images), pixels))]
    runs: dict[str, Probs] = {}
    for name in bundle.blend.runs:
        members = [member for member in bundle.members if member.run == name]
        parts = []
        for member in members:
            say(f"{member.file}: {len(images)} golden images")
            provider, probs = _run_graph(bundle, member.file, images, tolerance=golden.tolerance)
            parts.append(probs)
            rows.append(Row(what=member.file, found=f"{_describe_member(member)}; on {provider}"))
            if member.plain:
                _run_graph(bundle, member.plain, images, tolerance=golden.tolerance)
                rows.append(Row(what=member.plain, found="the same without views, for when there is no time for them"))
        runs[name] = mean_probs(parts)
        distance = furthest_run({name: runs[name]}, golden)
        check_distance(distance, golden, images)
        rows.append(_run_row(name, len(members), distance))
    rows += _check_cuts(bundle, runs)
    if bundle.fused is not None:
        say(f"{bundle.fused.file}: {len(images)} golden images")
        rows += _check_fused(bundle, bundle.fused, golden, images, runs)
    return Verified(
        folder=folder,
        rows=tuple(rows),
        notes=tuple(_other_files(bundle)),
        images=len(images),
        tolerance=golden.tolerance,
        difference=max(row.difference for row in rows if row.difference is not None),
    )


def format_verified(verified: Verified) -> list[str]:
    """Return lines for people to read: one for each thing that was checked, notes, and the result."""
    width = max(len(row.what) for row in verified.rows)
    lines = [f"  {row.what:<{width}}  {row.found}" for row in verified.rows]
    lines += [f"  note: {note}" for note in verified.notes]
    return [
        *lines,
        f"{verified.folder} is whole: on {verified.images} golden images this machine is at most "
        f"{verified.difference:.1e} away from home (allowed {verified.tolerance:g})",
    ]


def _check_graphs_listed(bundle: Bundle) -> None:
    """Refuse graphs that nothing in the bundle would run, or that two members share."""
    used = bundle.graphs
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
        raise BundleError(f"{bundle.folder / MANIFEST} lists {twice[0]!r} for two members; make the bundle again")
    there = {*bundle.files, *(path.name for path in bundle.folder.iterdir())}
    extra = sorted(name for name in there - set(used) if name.endswith(GRAPHS))
    if extra:
        raise BundleError(
            f"{bundle.folder} holds {some_of(extra)}, which is no member of the bundle; remove it, or make the bundle "
            "again in a folder of its own"
        )


def _check_priors(bundle: Bundle) -> None:
    for name, head in bundle.task.heads.items():
        shares = np.array(bundle.priors.get(name, ()), np.float64)
        if shares.shape != (head.num_classes,) or not ((shares >= 0) & (shares <= 1)).all():
            raise BundleError(
                f"{bundle.folder / MANIFEST} has no priors of head {name!r} that broken images could get: "
                f"{len(shares)} values, expected {head.num_classes} from 0 to 1; make the bundle again"
            )


def _run_graph(bundle: Bundle, file: str, images: Image, *, tolerance: float) -> tuple[str, Probs]:
    """Return what a graph really runs on, and its probabilities of all images; refuse what is no member's graph."""
    path, task = bundle.folder / file, bundle.task
    session = OnnxSession(path)
    if sorted(session.outputs) != sorted(task.heads):
        raise BundleError(
            f"{path} gives {sorted(session.outputs)}; expected one output for each head {sorted(task.heads)}; make "
            "the bundle again"
        )
    try:
        parts = [session.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        alone = session.run(images[:1])
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no other base
        raise BundleError(
            f"{path} does not run on stored images of {' x '.join(map(str, images.shape[1:]))}, one or {BATCH} at a "
            f"time: {brief(error)}; make the bundle again"
        ) from None
    probs = {head: np.concatenate([part[head] for part in parts]) for head in task.heads}
    _check_probs(str(path), probs, task, len(images))
    distance = furthest(file, alone, {head: values[:1] for head, values in probs.items()}, allowed=tolerance)
    if distance.too_far:
        raise BundleError(
            f"{path} gives an image other probabilities when it is alone: head {distance.head!r} is "
            f"{distance.difference:.4f} away, allowed {tolerance:g}; images of a batch must not mix"
        )
    return session.provider, probs


def _check_probs(what: str, probs: Probs, task: Task, num_images: int) -> None:
    """Refuse what are no probabilities of every image and class."""
    for name, head in task.heads.items():
        values = probs[name]
        if values.shape != (num_images, head.num_classes):
            raise BundleError(
                f"{what}: head {name!r} has shape {values.shape}; expected {(num_images, head.num_classes)}; make the "
                "bundle again"
            )
        usable = (values >= -SUM_TOLERANCE) & (values <= 1 + SUM_TOLERANCE)  # NaN is neither
        if not usable.all():
            row, column = np.argwhere(~usable)[0].tolist()
            raise BundleError(
                f"{what}: head {name!r} of golden image {row} has {values[row, column]:g}, which is no probability; "
                "make the bundle again"
            )
        sums = values.sum(axis=1)
        if name not in task.multilabel_heads and not (np.abs(sums - 1) <= SUM_TOLERANCE).all():
            row = int(np.abs(sums - 1).argmax())
            raise BundleError(
                f"{what}: head {name!r} of golden image {row} has probabilities that sum to {sums[row]:.4f}, not 1; "
                "make the bundle again"
            )


def _check_cuts(bundle: Bundle, runs: Mapping[str, Probs]) -> Iterator[Row]:
    """Check that whatever number of runs there is time for gives probabilities and classes."""
    task = bundle.task
    for number in range(1, len(bundle.blend.runs) + 1):
        blend = bundle.blend.first(number)
        parts = [runs[name] for name in blend.runs]
        with np.errstate(all="ignore"):  # what comes out is looked at
            probs = blend_probs(blend, parts, multilabel=task.multilabel_heads)
        num_images = len(next(iter(probs.values())))
        _check_probs(f"{bundle.folder}: the blend of the first {number} run(s)", probs, task, num_images)
        yield Row(what=f"runs 1 to {number}" if number > 1 else "run 1 alone", found=_describe_cut(blend, task))


def _check_fused(
    bundle: Bundle, fused: Fused, golden: Golden, images: Image, runs: Mapping[str, Probs]
) -> Iterator[Row]:
    """Check the fused graph against the members as they run here, and against home."""
    names, many = bundle.blend.runs, bundle.task.multilabel_heads
    provider, probs = _run_graph(bundle, fused.file, images, tolerance=golden.tolerance)
    here = furthest_blend(
        "the fused graph",
        probs,
        bundle.blend,
        [runs[name] for name in names],
        tolerance=golden.tolerance,
        multilabel=many,
    )
    if here.too_far:
        raise BundleError(
            f"{bundle.folder / fused.file} gives probabilities {here.difference:.4f} away from the blend of the "
            f"separate members (allowed {here.allowed:g}), the furthest for head {here.head!r} of golden image "
            f"{here.image}; make the bundle again"
        )
    yield Row(what=fused.file, found=f"as the blend of its members to {here.difference:.1e}; on {provider}")
    home = [golden.probs[name] for name in names]
    distance = furthest_blend("the fused graph", probs, bundle.blend, home, tolerance=golden.tolerance, multilabel=many)
    check_distance(distance, golden, images)
    yield Row(
        what="fused graph",
        found=f"at most {distance.difference:.1e} away from home's blend",
        difference=distance.difference,
    )


def _describe_files(bundle: Bundle) -> list[Row]:
    size = sum((bundle.folder / name).stat().st_size for name in bundle.files)
    made = ", ".join(part for part in (f"kaggle_kit {bundle.kit_version}", bundle.created) if part)
    return [
        Row(what=MANIFEST, found=f"format {FORMAT}, task {bundle.task.name!r}, written by {made}"),
        Row(what=f"{len(bundle.files)} other files", found=f"{size / (1 << 20):,.1f} MB, SHA-256 as written"),
    ]


def _describe_images(number: int, pixels: int) -> str:
    return f"all {number} decode; pixels differ from home's by up to {pixels} of 255"


def _describe_member(member: Member) -> str:
    fold = "everything" if member.fold < 0 else f"fold {member.fold}"
    views = f", averaged over {', '.join(member.tta)}" if member.tta else ""
    return f"run {member.run!r}, {fold}, {member.precision}{views}"


def _run_row(name: str, num_members: int, distance: Distance) -> Row:
    mean = f"the mean of {num_members} members is " if num_members > 1 else ""
    return Row(
        what=f"run {name!r}",
        found=f"{mean}at most {distance.difference:.1e} away from home",
        difference=distance.difference,
    )


def _describe_cut(blend: Blend, task: Task) -> str:
    score = "" if blend.score is None else f", out-of-fold {task.metric} {blend.score.total:.4f}"
    return f"probabilities and classes of all {len(task.heads)} head(s){score}"


def _other_files(bundle: Bundle) -> Iterator[str]:
    own: Collection[str] = {MANIFEST, *bundle.files}
    for path in sorted(bundle.folder.iterdir()):
        if path.name not in own:
            yield f"{path.name}{'/' if path.is_dir() else ''} is no part of the bundle"
