"""The whole way on the sample competition, small but real: from its images to the kernel's submission and its score."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kaggle_kit.blending import FittedBlend, fit_blend
from kaggle_kit.ensemble import Blend, blend_probs, mean_probs, save_blend
from kaggle_kit.errors import DataError, RehearsalError
from kaggle_kit.export.bundle import write_bundle
from kaggle_kit.folds import describe_duplicates, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.platform.rehearse import Rehearsal, rehearse
from kaggle_kit.platform.wheel import kernels_folder
from kaggle_kit.predictions import Predictions
from kaggle_kit.progress import say
from kaggle_kit.runs import Run
from kaggle_kit.runtime.bundle import Bundle
from kaggle_kit.sample import make_sample
from kaggle_kit.sample_digits import UNSEEN_SHARE
from kaggle_kit.scores import DRAWS, SplitScore, format_scores, score_split
from kaggle_kit.sources import open_source, resolve_stored
from kaggle_kit.submission import read_submission
from kaggle_kit.tables import rows_of
from kaggle_kit.task import Task, read_task
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.config import LoaderConfig, ModelConfig, OptimConfig, TrainConfig
from kaggle_kit.train.crossval import train_run
from kaggle_kit.train.predict import EVAL_BATCH, predict_batches

MARKER = ".kaggle-kit-demo"
NUM_FOLDS = 2


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes of a demo.

    Attributes:
        num_train: Train images of the sample; None for its default.
        num_test: Hidden test images; None for its default.
        epochs: Of every training.
        models: timm names.
        input_size: (height, width) the networks see.
    """

    num_train: int | None = None
    num_test: int | None = None
    epochs: int = 12
    models: tuple[str, ...] = ("test_resnet", "test_efficientnet")
    input_size: tuple[int, int] = (48, 80)


FAST = DemoSettings(num_train=1400, num_test=500, epochs=5)


@dataclass(kw_only=True)
class Stages:
    """The demo's table, filled as stages end: (stage, seconds, what came out)."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; the block puts what came out into the list it is given."""
        say(f"\n{name} ...")
        started = time.perf_counter()
        outcome: list[str] = []
        yield outcome
        self.rows.append((name, time.perf_counter() - started, "; ".join(outcome)))
        say(f"{name}: {self.rows[-1][2]} ({self.rows[-1][1]:.1f} s)")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo shows at its end.

    Attributes:
        stages: (stage, seconds, what came out).
        oof: The blend's out-of-fold score.
        hidden: The submission's score on the hidden test.
        differing: Decisions of the kernel on the hidden test that torch makes otherwise.
        decisions: How many there are: images times heads.
        bundle: With each member's parity.
        rehearsal: What Kaggle would have answered.
        folder: Where everything lies.
    """

    stages: list[tuple[str, float, str]]
    oof: SplitScore
    hidden: SplitScore
    differing: int
    decisions: int
    bundle: Bundle
    rehearsal: Rehearsal
    folder: Path


def run_demo(out: Path, settings: DemoSettings | None = None) -> DemoResult:
    """Go the whole way; an earlier demo in `out` is replaced.

    Args:
        out: The demo's folder.
        settings: Its sizes; None for the default ones, `FAST` for a quick look.

    Raises:
        DataError: When `out` holds something other than a demo.
        RehearsalError: When the rehearsal fails.
    """
    settings = settings or DemoSettings()
    _claim(out)
    stages = Stages()
    with stages.stage("sample") as said:
        sample = make_sample("digits", out / "sample", num_train=settings.num_train, num_test=settings.num_test)
        task = read_task(sample.task)
        labels = read_labels(task, sample.data)
        said.append(f"{len(labels):,} train images, heads {', '.join(task.heads)}")
    with stages.stage("pack") as said:
        store = pack_train(resolve_stored(task, sample.data), sample.data, out / "packed")
        duplicates = store.duplicate_groups()[rows_of(labels.ids, store.ids)]
        said.append(
            f"{len(store):,} images, {store.num_bytes / 1e6:.0f} MB; {describe_duplicates(labels, duplicates).text}"
        )
    with stages.stage("folds") as said:
        folds = make_folds(
            labels, "unseen", num_folds=NUM_FOLDS, seed=0, duplicates=duplicates, unseen_share=UNSEEN_SHARE
        )
        folds.save(out / "folds.parquet")
        said.append(f"{folds.num_folds} folds, {folds.unseen.mean():.1%} of the images in combinations held out whole")
    runs = []
    for name in settings.models:
        with stages.stage(f"train {name}") as said:
            config = _train_config(name, settings)
            run = train_run(task, config, data=sample.data, folds=folds, out=out / "runs" / name, packed=store.folder)
            runs.append(run)
            said.append(f"out-of-fold {run.score.total:.4f}")
    with stages.stage("blend") as said:
        found = fit_blend(runs)
        blend = found.blend
        save_blend(blend, out / "blend.json")
        rules = "and so does the bundle" if blend.decision.is_plain else "the bundle decides by fitted rules"
        by = f"out-of-fold {found.scores.all.total:.4f} by the highest probability; {rules}"
        said.append(f"{_describe_mixes(blend)}, {by}")
    with stages.stage("bundle") as said:
        bundle = write_bundle(runs, blend, out / "bundle")
        said.append(f"{len(bundle.members)} members, {_size_mb(bundle.folder):.1f} MB")
    with stages.stage("rehearse") as said:
        rehearsal = rehearse(
            kernels_folder() / "submit",
            task,
            data=sample.data,
            hidden=sample.hidden,
            bundle=bundle.folder,
            work=out / "rehearsal",
            echo=say,
        )
        said.append(f"{rehearsal.answer}, peak {rehearsal.peak_memory_gb:.1f} GB, {rehearsal.isolation}")
    if rehearsal.score is None:
        raise RehearsalError(f"the rehearsal ended in {rehearsal.answer!r}: {rehearsal.detail}; see {rehearsal.log}")
    with stages.stage("torch again") as said:
        differing, decisions = _compare_with_torch(task, runs, blend, sample.hidden, rehearsal.submission)
        said.append(f"{differing} of {decisions:,} decisions of the kernel differ on the hidden test")
    return DemoResult(
        stages=stages.rows,
        oof=_oof_scores(task, found, runs[0]),
        hidden=rehearsal.score,
        differing=differing,
        decisions=decisions,
        bundle=bundle,
        rehearsal=rehearsal,
        folder=out,
    )


def _claim(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise DataError(f"{out} is not empty and no earlier demo; choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _train_config(name: str, settings: DemoSettings) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=name, input_size=settings.input_size),
        optim=OptimConfig(lr=4e-3),
        loader=LoaderConfig(batch_size=32),
        epochs=settings.epochs,
    )


def _oof_scores(task: Task, found: FittedBlend, run: Run) -> SplitScore:
    """Return the blend's scores by the rules it goes out with, each image decided by rules fitted without its fold."""
    if found.fitted is None or found.blend.decision.is_plain:
        return found.scores
    folds = run.fold_table()
    unseen = folds.unseen[folds.rows(found.oof.ids)]
    groups = run.labels().align(found.oof.ids).group_numbers()
    return score_split(task, found.truth, found.fitted.decided, unseen, draws=DRAWS, groups=groups)


def _describe_mixes(blend: Blend) -> str:
    """Return how each head's probabilities come about, and of which runs."""
    kinds = {head: mix.kind for head, mix in blend.whole.heads.items()}
    alike = len(set(kinds.values())) < 2
    how = next(iter(kinds.values()), "arithmetic") if alike else ", ".join(f"{h} {k}" for h, k in kinds.items())
    return f"{how} blend of {', '.join(f'{name} {share:.2f}' for name, share in blend.shares().items())}"


def _compare_with_torch(task: Task, runs: list[Run], blend: Blend, hidden: Path, submission: Path) -> tuple[int, int]:
    """Return how many decisions of the submission torch makes otherwise, and how many there are."""
    source = open_source(task, "test", hidden)
    images = np.concatenate([chunk.images for chunk in source.chunks()])
    batches = np.array_split(images, max(1, len(images) // EVAL_BATCH))
    by_name = {run.name: run for run in runs}
    parts = []
    for run in (by_name[name] for name in blend.runs):
        networks = [load_checkpoint(run.checkpoint(fold))[0] for fold in run.folds]
        parts.append(mean_probs([predict_batches(network, batches) for network in networks]))
    multilabel = task.multilabel_heads
    probs = blend_probs(blend, parts, multilabel=multilabel)
    ids, decided = read_submission(task, submission)
    predicted = Predictions(ids=source.ids, probs=probs, multilabel=multilabel).align(ids)
    expected = blend.decision.decide(predicted.probs, multilabel=multilabel)
    return sum(int((decided[head] != expected[head]).sum()) for head in task.heads), len(ids) * len(task.heads)


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def format_demo(result: DemoResult) -> str:
    """Return the demo's closing tables as text."""
    width = max(len(stage) for stage, _, _ in result.stages) + 2
    lines = [f"{'stage':<{width}}{'seconds':>8}  what came out", "-" * (width + 60)]
    lines += [f"{stage:<{width}}{seconds:>8.1f}  {outcome}" for stage, seconds, outcome in result.stages]
    lines += [f"{'in all':<{width}}{sum(seconds for _, seconds, _ in result.stages):>8.1f}", ""]
    lines += format_scores({"out of fold": result.oof, "hidden test": result.hidden})
    parities = [member.parity for member in result.bundle.members]
    changed, rows = sum(p.decisions_changed for p in parities), sum(p.rows for p in parities)
    lines += [
        "",
        f"torch and the kernel: {result.differing} of {result.decisions:,} decisions differ on the hidden test",
        f"torch and ONNX: {changed} decisions differ on {rows:,} out-of-fold images of {len(parities)} members; "
        f"probabilities by at most {max(p.max_abs_diff for p in parities):.1e}",
        "",
        "Where to look next:",
        f"  {result.folder / 'runs'}: a folder a run, with history.csv and checkpoints; `kaggle-kit runs` lists them",
        f"  {result.folder / 'bundle' / 'manifest.json'}: what the kernel gets",
        f"  {result.rehearsal.log}: what the kernel said",
        f"  {result.rehearsal.submission}: what it wrote",
        "  kaggle-kit train --help: the same on your own competition",
    ]
    return "\n".join(lines)
