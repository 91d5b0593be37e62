"""A bundle: one folder with everything a submission kernel needs, opened only when every byte is as written.

    manifest.json       format, task, members with parity, cost and provenance, the blend of their runs with its
                        decision rules, priors, out-of-fold score, SHA-256 of all files
    member_*.onnx       uint8 stored images in, one (batch, C) output of probabilities per head; of the first run
                        without views too, where members have views
    fused.onnx          where it was asked for: all members and their blend in one graph, same input and outputs
    golden.npz          images that show every class, with the probabilities that each run gave them at home

Flat names, no archives that an upload would unpack, nothing pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import kaggle_kit
from kaggle_kit.decision import Decision
from kaggle_kit.ensemble import Blend
from kaggle_kit.errors import BundleError, SettingError, some_of
from kaggle_kit.files import replacing
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.settings import build, plain
from kaggle_kit.task import Task, task_from_plain, task_to_plain

FORMAT = 6
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
FUSED = "fused.onnx"

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How well an exported member repeats its torch network on real images.

    Attributes:
        rows: Images compared.
        max_abs_diff: Largest difference of a probability.
        decisions_changed: Decisions that differ, over all heads; of multi-label heads over all classes.
    """

    rows: int
    max_abs_diff: float
    decisions_changed: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """What it costs that probabilities are not quite the same, measured on images whose truth is known.

    Attributes:
        rows: Images compared.
        decisions: Decisions compared: a head's of an image.
        decisions_changed: How many of them differ; a multi-label head's in any class.
        max_abs_diff: Largest difference of a probability.
        score_before: The metric without the change; NaN where it has no value on these images.
        score_after: With it.
        gain: By how much it is better with the change, whatever the metric; below 0 is a loss.
        interval: 95 % of resamples of the images gain between these two.
    """

    rows: int
    decisions: int
    decisions_changed: int
    max_abs_diff: float
    score_before: float
    score_after: float
    gain: float
    interval: tuple[float, float]

    @property
    def changed_share(self) -> float:
        """Of the decisions, how many differ."""
        return self.decisions_changed / max(self.decisions, 1)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One exported network; those of a run count the same.

    Attributes:
        file: Its .onnx file.
        run: The run it comes from.
        fold: The fold it was validated on; -1 where it was trained on everything.
        score: Of its checkpoint, on its validation fold; where it was trained on everything, the out-of-fold score of
            the cross-validation whose settings it took.
        score_of: Which of the two that is.
        config_hash: Of the settings it was trained with; of a model from elsewhere the SHA-256 of what it was made of.
        parity: Against torch in full precision, measured at export, before `precision` is lowered; of a model from
            elsewhere against the out-of-fold predictions that came with it.
        run_id: What the ledger knows the run by.
        model: Name of its architecture.
        licence: Of the pretrained weights it started from, as timm states it; empty: none, or not stated.
        kit_version: Of the kit that trained it.
        precision: What it computes in.
        tta: The changes of the image that probabilities are averaged over, beside the image itself; empty: none.
        derived_from: The auxiliary head that probabilities are summed from; empty: the heads' own.
        stored: What is changed by all this against the run's stored out-of-fold predictions, which may have been made
            in half precision; of a training on everything with views or a derived head, against its network without
            them, on images that it has learned; None where there is nothing to compare with.
        lowered: What the lower precision changes, on images of its fold, or for a training on everything on images it
            has learned; None in full precision.
        kept: What a lower precision leaves in full precision.
        no_tensorrt: What TensorRT's parser would refuse in its graph; empty: nothing.
        seconds: An image took at export, on the bundle's `seconds_on`.
        plain: Its network without the views of `tta`, as an .onnx file of its own, for when there is no time for them;
            empty: there is none.
    """

    file: str
    run: str
    fold: int
    score: float
    score_of: Literal["fold", "cross-validation"] = "fold"
    config_hash: str
    parity: Parity
    run_id: str = ""
    model: str = ""
    licence: str = ""
    kit_version: str = ""
    precision: Precision = "fp32"
    tta: tuple[str, ...] = ()
    derived_from: str = ""
    stored: Change | None = None
    lowered: Change | None = None
    kept: str = ""
    no_tensorrt: tuple[str, ...] = ()
    seconds: float = 0.0
    plain: str = ""


@dataclass(frozen=True, kw_only=True)
class Fused:
    """All members and their blend in one graph.

    Attributes:
        file: Its .onnx file.
        parity: Against the blend of the separate members.
        no_tensorrt: What TensorRT's parser would refuse in it; empty: nothing.
        seconds: An image took at export.
    """

    file: str
    parity: Parity
    no_tensorrt: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle.

    Attributes:
        folder: Where it lies.
        task: The competition.
        members: In the blend's running order.
        blend: What becomes of the runs' probabilities, for every cut of the running order.
        priors: {head: C shares of the train images that show a class}: what a broken image gets.
        oof_score: The blend's score on out-of-fold predictions, by rules fitted without the image's fold.
        files: {name: SHA-256} of every other file.
        fused: The whole blend in one graph, where it was asked for.
        change: What the blend of the exported members changes against the stored out-of-fold predictions; None where
            all runs were trained on everything.
        seconds_on: The machine that members' seconds were measured on.
        created: When: ISO 8601, UTC.
        kit_version: Of the kit that wrote it.
    """

    folder: Path
    task: Task
    members: tuple[Member, ...]
    blend: Blend
    priors: dict[str, tuple[float, ...]]
    oof_score: float
    files: dict[str, str]
    fused: Fused | None = None
    change: Change | None = None
    seconds_on: str = ""
    created: str = ""
    kit_version: str = kaggle_kit.__version__

    @property
    def graphs(self) -> tuple[str, ...]:
        """All .onnx files: members, those of them without views, the fused graph."""
        plain = [member.plain for member in self.members if member.plain]
        return (*(member.file for member in self.members), *plain, *([self.fused.file] if self.fused else []))

    @property
    def decision(self) -> Decision:
        """The rules by which the whole blend's probabilities become classes."""
        return self.blend.decision

    @property
    def prior_shift(self) -> bool:
        """Whether probabilities are corrected for the test's class shares before that."""
        return self.blend.prior_shift


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Images with the probabilities they gave at home.

    Attributes:
        encoded: Encoded files, as bytes.
        fitted: Whether these are lossless encodings of the stored images, where the competition has bare pixels.
        images: (n, H, W, C) uint8: the same images at the stored size; the first ones show the most classes.
        probs: {run: {head: (n, C)}}: each run's, the mean of its members.
        tolerance: How far a probability may be away on another machine.
    """

    encoded: tuple[bytes, ...]
    fitted: bool
    images: Image
    probs: dict[str, Probs]
    tolerance: float = 2e-3


def write_manifest(bundle: Bundle) -> None:
    """Write `manifest.json`, atomically."""
    values = {"format": FORMAT, "task": task_to_plain(bundle.task)}
    about = ("kit_version", "created", "oof_score", "change", "seconds_on")
    names = (*about, "blend", "members", "fused", "priors", "files")
    values |= {name: plain(getattr(bundle, name)) for name in names}
    values["sha256"] = _digest(values)
    with replacing(bundle.folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle after checking every file's hash.

    Raises:
        BundleError: Naming the file that is missing or changed, the format that is not known, or in what members,
            task and blend do not belong together.
    """
    bundle = _read_manifest(folder)
    for name, expected in bundle.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing; attach the whole bundle, or make it again with `kaggle-kit bundle`")
        found = file_sha256(path)
        if found != expected:
            raise BundleError(
                f"{path} has changed: SHA-256 is {found[:12]}..., the manifest says {expected[:12]}...; "
                "copy it again, or make the bundle again"
            )
    return bundle


def bundle_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files the bundle in `folder` is made of, itself included; none where there is none."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return (MANIFEST, *values["files"]) if values["format"] == FORMAT and values["members"] else ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _digest(values: dict[str, Any]) -> str:
    """Return the SHA-256 of plain values, whatever their order and layout on disk."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(folder: Path) -> Bundle:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle (no {MANIFEST}); make one with `kaggle-kit bundle`")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise BundleError(
            f"{path} has bundle format {found}; kaggle_kit {kaggle_kit.__version__} reads {FORMAT}; "
            "use the kit that wrote it, or make the bundle again"
        )
    if values.pop("sha256", None) != _digest(values):
        raise BundleError(f"{path} has changed since it was written; copy it again, or make the bundle again")
    del values["format"]
    try:
        task = task_from_plain(values.pop("task", None))
        bundle = build(Bundle, {**values, "folder": folder, "task": task})
    except SettingError as error:
        raise BundleError(f"{path}: {error}; make the bundle again") from None
    unlisted = [name for name in (*bundle.graphs, GOLDEN) if name not in bundle.files]
    odd = [name for name in bundle.files if Path(name).name != name]
    if unlisted or odd or not bundle.members:
        raise BundleError(f"{path} lists no member, or files it may not: {some_of(odd + unlisted)}; make it again")
    try:
        check_blend(bundle.blend, bundle.task, [member.run for member in bundle.members])
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    return bundle


def check_blend(blend: Blend, task: Task, runs: Sequence[str]) -> None:
    """Refuse a blend that members of these runs cannot be mixed by, whichever cut of it is taken.

    Args:
        blend: The blend.
        task: The task of all runs.
        runs: The run of each member, in order.

    Raises:
        BundleError: Naming the runs, head or size that do not fit.
    """
    if list(dict.fromkeys(runs)) != list(blend.runs) or sorted(runs, key=blend.runs.index) != list(runs):
        raise BundleError(
            f"members are of runs {list(dict.fromkeys(runs))}, the blend's running order is {list(blend.runs)}; "
            "make the bundle again from the blend's own runs"
        )
    for number, prefix in enumerate(blend.prefixes, start=1):
        sources = [name for mix in prefix.heads.values() if mix.stack for name in mix.stack.sources]
        unknown = [head for head in (*prefix.heads, *prefix.decision.heads, *sources) if head not in task.heads]
        problems = [f"head {head!r} is none of {list(task.heads)}" for head in unknown]
        problems = problems or [problem for head in task.heads for problem in _misfits(blend, number, task, head)]
        if problems:
            raise BundleError(
                f"the blend of the first {number} run(s) does not fit: {problems[0]}; make it again from these runs"
            )


def _misfits(blend: Blend, num_runs: int, task: Task, head: str) -> Iterator[str]:
    """Yield in what a head's mix and rule do not fit the runs before a cut and the head's classes."""
    prefix, classes = blend.prefixes[num_runs - 1], task.heads[head].num_classes
    mix, rule = prefix.heads.get(head), prefix.decision.heads.get(head)
    if mix and mix.stack:
        expected = (num_runs * sum(task.heads[name].num_classes for name in mix.stack.sources), classes)
        if mix.stack.coefficients.shape != expected:
            yield f"head {head!r} has a stack of {mix.stack.coefficients.shape} coefficients, expected {expected}"
    if mix and mix.kind == "rank":
        shapes = {name: table.shape for name, table in blend.ranks.get(head, {}).items()}
        for name in blend.runs[:num_runs]:
            if len(shapes.get(name, ())) != 2 or shapes[name][0] != classes:
                yield f"head {head!r} has no quantiles of {classes} classes for run {name!r}"
    if rule and bool(rule.thresholds) != (head in task.multilabel_heads) and rule.rule != "argmax":
        yield f"head {head!r} is {task.heads[head].kind} and has a rule {rule.rule!r}, which is for others"
    values = (rule.log_bias or rule.thresholds) if rule else ()
    if len(values) not in (0, classes):
        yield f"head {head!r} has a rule of {len(values)} values, expected {classes}"


def save_golden(golden: Golden, folder: Path) -> None:
    """Write the golden images and their probabilities, runs by their number: `probs/0/root`."""
    sizes = np.array([len(data) for data in golden.encoded], np.int64)
    joined = np.frombuffer(b"".join(golden.encoded), np.uint8)
    arrays: dict[str, npt.NDArray[Any]] = {
        f"probs/{number}/{head}": values
        for number, probs in enumerate(golden.probs.values())
        for head, values in probs.items()
    }
    arrays |= {"encoded": joined, "sizes": sizes, "fitted": np.array(golden.fitted), "images": golden.images}
    arrays["tolerance"] = np.array(golden.tolerance)
    with replacing(folder / GOLDEN) as temporary, temporary.open("wb") as file:
        np.savez(file, runs=np.array(list(golden.probs), np.str_), **arrays)  # type: ignore[arg-type]


def load_golden(folder: Path) -> Golden:
    """Read what `save_golden` wrote; its hash is checked by `open_bundle`."""
    with (folder / GOLDEN).open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    ends = np.cumsum(arrays["sizes"])
    joined = arrays["encoded"].tobytes()
    encoded = tuple(joined[end - size : end] for size, end in zip(arrays["sizes"], ends, strict=True))
    probs: dict[str, Probs] = {name: {} for name in arrays["runs"].tolist()}
    for name, values in arrays.items():
        if name.startswith("probs/"):
            _, number, head = name.split("/", 2)
            probs[str(arrays["runs"][int(number)])][head] = values
    return Golden(
        encoded=encoded,
        fitted=bool(arrays["fitted"]),
        images=arrays["images"],
        probs=probs,
        tolerance=float(arrays["tolerance"]),
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
