"""A small fixed training, recorded with its seed noise: did a change to the code move the score?

`record` trains the recipe with several seeds; `check` trains it again with some of them and compares the means. Where
nothing changed, on the same machine, same seeds give the same bits, and the check says so. Otherwise the difference of
the means is held against the seeds' own spread by Student's two-sample t-test with pooled variance, which holds for one
new seed too: |difference| > t(1 - alpha / 2; n + m - 2) * s * sqrt(1 / n + 1 / m). The data and the folds are the same
throughout, so their luck is in no number here.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from kaggle_kit.entries import settings_of
from kaggle_kit.errors import DataError, SettingError, some_of
from kaggle_kit.experiment import Experiment, compose_experiment, train_folds
from kaggle_kit.files import check_output_file, replacing
from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.metrics import gain
from kaggle_kit.progress import say
from kaggle_kit.runs import Run
from kaggle_kit.settings import build, fingerprint, plain
from kaggle_kit.task import Metric, read_task
from kaggle_kit.train.config import LoaderConfig, ModelConfig, OptimConfig, TrainConfig

FORMAT = 1
FALSE_ALARM = 0.02  # of an unchanged kit, both ways together: 1 check in 100 is called worse, 1 better
MORE_PACKAGES = ("numpy", "opencv-python-headless")  # beside those that every run notes
NUM_TRAIN = 1400  # images of the sample
VALID_SHARE = 0.3  # of them, in one fold
OF_THE_MACHINE = ("loader.num_workers", "loader.window_gb")

Train = Callable[[Experiment], Run]


@dataclass(frozen=True, kw_only=True)
class SeedScore:
    """What one seed gave: out-of-fold, in all and of every head, and the seconds it took."""

    seed: int
    total: float
    heads: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A recipe's scores at some moment.

    Attributes:
        overrides: The user's recipe, as for `kaggle-kit train`; empty: the kit's own.
        recipe: {dotted setting, or `task`, `folds`: its value}.
        metric: What the scores are.
        scores: One for each seed.
        environment: {package or part of the machine: its version or name}.
        created: ISO 8601, UTC.
    """

    overrides: tuple[str, ...]
    recipe: dict[str, str]
    metric: str
    scores: tuple[SeedScore, ...]
    environment: dict[str, str]
    created: str

    @property
    def mean(self) -> float:
        """The seeds' mean score."""
        return statistics.fmean(score.total for score in self.scores)

    @property
    def deviation(self) -> float:
        """The standard deviation between seeds."""
        return statistics.stdev(score.total for score in self.scores)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the score moved beyond its seed noise.

    Attributes:
        outcome: `identical`: the same bits for the same seeds; `unmoved`: within seed noise; `worse`; `better`.
        gain: By how much the mean is better now; below 0: worse.
        least: The smallest move, either way, that this check calls one.
        false_alarm: Share of checks of an unchanged kit that are called worse or better.
        baseline: What was recorded.
        scores: What the seeds give now.
        environment: Of now.
        notes: What else is different now, as sentences.
    """

    outcome: Literal["identical", "unmoved", "worse", "better"]
    gain: float
    least: float
    false_alarm: float
    baseline: Baseline
    scores: tuple[SeedScore, ...]
    environment: dict[str, str]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the score did not go down; what the exit code says."""
        return self.outcome != "worse"


def record_baseline(
    file: Path, overrides: Sequence[str] = (), *, num_seeds: int = 5, train: Train = train_folds
) -> Baseline:
    """Train a recipe with several seeds and write what they give; an earlier file is replaced.

    Args:
        file: Where the baseline goes, JSON.
        overrides: One's own recipe as for `kaggle-kit train`, without `out` and `seed`; empty: the kit's own, on
            sample images that are made for it.
        num_seeds: At least 3, for the noise is estimated from them.
        train: What trains; another one in tests.

    Raises:
        SettingError: For a recipe or a number of seeds that will not do.
    """
    if num_seeds < 3:
        raise SettingError(f"--seeds is {num_seeds}; seed noise needs at least 3 seeds to be estimated from")
    check_output_file(file, ".json")
    with _recipe(overrides) as experiment:
        baseline = Baseline(
            overrides=tuple(overrides),
            recipe=_identity(experiment),
            metric=read_task(experiment.task).metric,
            scores=_train_seeds(experiment, range(num_seeds), train),
            environment=_environment(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
    with replacing(file) as temporary:
        text = json.dumps({"format": FORMAT, **plain(baseline)}, indent=1, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return baseline


def check_baseline(
    file: Path, *, num_seeds: int = 3, false_alarm: float = FALSE_ALARM, train: Train = train_folds
) -> Verdict:
    """Train a recorded recipe again and say whether its score moved.

    Args:
        file: What `record_baseline` wrote.
        num_seeds: How many of the recorded seeds train again.
        false_alarm: Share of checks of an unchanged kit that may be called worse or better.
        train: What trains; another one in tests.

    Raises:
        DataError: When the file is no baseline.
        SettingError: When the recipe is another one now, or `num_seeds` is not among those recorded.
    """
    baseline = read_baseline(file)
    recorded = len(baseline.scores)
    if not 1 <= num_seeds <= recorded:
        raise SettingError(f"--seeds is {num_seeds}; {file} holds {recorded} seeds, of which 1 to {recorded} can train")
    if not 0 < false_alarm < 0.5:
        raise SettingError(f"the share of false alarms is {false_alarm:g}; expected above 0 and below 0.5")
    with _recipe(baseline.overrides) as experiment:
        added = _check_same_recipe(file, baseline.recipe, _identity(experiment))
        seeds = [score.seed for score in baseline.scores[:num_seeds]]
        scores = _train_seeds(experiment, seeds, train)
    environment = _environment()
    return judge(
        baseline, scores, environment, false_alarm=false_alarm, notes=[*added, *_changes(baseline, environment)]
    )


def judge(
    baseline: Baseline,
    scores: Sequence[SeedScore],
    environment: dict[str, str],
    *,
    false_alarm: float = FALSE_ALARM,
    notes: Sequence[str] = (),
) -> Verdict:
    """Hold new scores against recorded ones; see the module's text for the test."""
    from scipy import stats

    old, new = [s.total for s in baseline.scores], [s.total for s in scores]
    degrees = len(old) + len(new) - 2
    spread = math.sqrt((_squares(old) + _squares(new)) / degrees)
    quantile = float(stats.t.ppf(1 - false_alarm / 2, degrees))
    least = quantile * spread * math.sqrt(1 / len(old) + 1 / len(new))
    metric: Metric = baseline.metric  # type: ignore[assignment]  # written by us from a task
    gained = gain(metric, statistics.fmean(new), statistics.fmean(old))
    before = {score.seed: (score.total, score.heads) for score in baseline.scores}
    outcome: Literal["identical", "unmoved", "worse", "better"] = "unmoved"
    if all(before.get(score.seed) == (score.total, score.heads) for score in scores):
        # The mean of fewer seeds than were recorded may lie anywhere in their noise: nothing has moved.
        outcome = "identical"
    elif abs(gained) > least:
        outcome = "better" if gained > 0 else "worse"
    return Verdict(
        outcome=outcome,
        gain=gained,
        least=least,
        false_alarm=false_alarm,
        baseline=baseline,
        scores=tuple(scores),
        environment=environment,
        notes=tuple(notes),
    )


def read_baseline(file: Path) -> Baseline:
    """Read what `record_baseline` wrote.

    Raises:
        DataError: When it is absent or something else.
    """
    if not file.is_file():
        raise DataError(f"there is no baseline {str(file)!r}; make it with `kaggle-kit baseline record`")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise DataError(f"{file} is no baseline of format {FORMAT}, which this version reads; record it again")
        baseline = build(Baseline, values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise error if isinstance(error, DataError) else _unreadable(file, error) from None
    if len(baseline.scores) < 3:
        raise DataError(f"{file} holds {len(baseline.scores)} seeds, expected at least 3; record it again")
    return baseline


def format_baseline(baseline: Baseline) -> list[str]:
    """Return a baseline as lines of text."""
    lines = [f"{baseline.metric} {baseline.mean:.4f}, seed standard deviation {baseline.deviation:.4f}"]
    lines += [_seed_line(score) for score in baseline.scores]
    for head in baseline.scores[0].heads if len(baseline.scores[0].heads) > 1 else ():
        values = [score.heads[head] for score in baseline.scores]
        lines.append(f"  head {head}: {statistics.fmean(values):.4f}, deviation {statistics.stdev(values):.4f}")
    lines.append("  " + ", ".join(f"{name} {value}" for name, value in baseline.environment.items()))
    return lines


def format_verdict(verdict: Verdict) -> list[str]:
    """Return a verdict as lines of text: the first is the answer."""
    before = verdict.baseline
    now = statistics.fmean(score.total for score in verdict.scores)
    means = f"{before.metric} {before.mean:.4f} ({len(before.scores)} seeds) to {now:.4f} ({len(verdict.scores)})"
    answers = {
        "identical": f"IDENTICAL: the same scores to the last bit for the same {len(verdict.scores)} seed(s)",
        "unmoved": f"UNMOVED: {means}; a move up to {verdict.least:.4f} cannot be told from seed noise",
        "worse": f"WORSE: {means}: down by {-verdict.gain:.4f}, seed noise explains {verdict.least:.4f}",
        "better": f"BETTER: {means}: up by {verdict.gain:.4f}, seed noise explains {verdict.least:.4f}; record it anew",
    }
    lines = [answers[verdict.outcome], *(_seed_line(score) for score in verdict.scores)]
    heads = list(before.scores[0].heads)
    for head in heads if len(heads) > 1 and verdict.outcome != "identical" else ():
        old = statistics.fmean(score.heads[head] for score in before.scores)
        new = statistics.fmean(score.heads[head] for score in verdict.scores)
        lines.append(f"  head {head}: {old:.4f} to {new:.4f}")
    if verdict.outcome != "identical":
        share = f"{verdict.false_alarm / 2:.1%}"
        lines.append(f"  where nothing changed, {share} of checks say worse and {share} better")
    return [*lines, *(f"  {note}" for note in verdict.notes)]


@contextmanager
def _recipe(overrides: Sequence[str]) -> Iterator[Experiment]:
    """Yield the recipe as an experiment whose runs go to a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="kaggle-kit-baseline-") as name:
        work = Path(name)
        if not overrides:
            yield _own_recipe(work)
            return
        for override in overrides:
            if override.partition("=")[0] in ("out", "seed", "overwrite", "max_hours"):
                raise SettingError(
                    f"leave {override!r} out: a baseline has its own seeds, trains to the end and keeps no run"
                )
        experiment = compose_experiment([*overrides, "out=run"])
        if experiment.like is not None:
            raise SettingError("`like` trains on everything, which gives no score to hold against others; leave it out")
        yield dataclasses.replace(experiment, out=work / "run")


def _own_recipe(work: Path) -> Experiment:
    from kaggle_kit.sample import make_sample

    sample = make_sample("digits", work / "sample", num_train=NUM_TRAIN, num_test=100)
    task = read_task(sample.task)
    folds = make_folds(read_labels(task, sample.data), "holdout", valid_share=VALID_SHARE, seed=0)
    folds.save(work / "folds.parquet")
    return Experiment(
        task=str(sample.task),
        data=sample.data,
        folds=work / "folds.parquet",
        out=work / "run",
        packed=None,
        fold=None,
        like=None,
        overwrite=False,
        train=TrainConfig(
            model=ModelConfig(name="test_resnet", input_size=(48, 80)),
            optim=OptimConfig(lr=1e-2),
            loader=LoaderConfig(batch_size=16, num_workers=0),
            epochs=8,
        ),
    )


def _train_seeds(experiment: Experiment, seeds: Sequence[int], train: Train) -> tuple[SeedScore, ...]:
    scores: list[SeedScore] = []
    for seed in seeds:
        say(f"baseline: seed {seed} ({len(scores) + 1} of {len(seeds)})")
        started = time.perf_counter()
        settings = dataclasses.replace(experiment.train, seed=seed)
        run = train(dataclasses.replace(experiment, train=settings, out=experiment.out / f"seed_{seed}"))
        seconds = round(time.perf_counter() - started, 1)
        scores.append(SeedScore(seed=seed, total=run.score.total, heads=dict(run.score.heads), seconds=seconds))
        say(_seed_line(scores[-1]).strip())
    return tuple(scores)


def _identity(experiment: Experiment) -> dict[str, str]:
    """Return what makes the recipe: settings, task and folds, but not where files lie."""
    folds = Folds.load(experiment.folds)
    settings = {key: str(value) for key, value in settings_of(experiment.train).items() if key != "seed"}
    return {
        **{key: value for key, value in settings.items() if key not in OF_THE_MACHINE and not key.startswith("log.")},
        "task": fingerprint(read_task(experiment.task)),
        "folds": hashlib.sha256(f"{folds.ids.tolist()}{folds.fold.tolist()}".encode()).hexdigest()[:12],
        "fold": "all" if experiment.fold is None else str(experiment.fold),
    }


def _check_same_recipe(file: Path, there: dict[str, str], now: dict[str, str]) -> list[str]:
    """Refuse a recipe that changed; return a note on settings that are new, and so at their defaults."""
    changed = [key for key in there if there[key] != now.get(key)]
    if changed:
        told = "; ".join(f"{key}: {there[key]} there, {now.get(key, 'gone')} now" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SettingError(f"{file} was recorded with another recipe ({told}{more}); record it again")
    new = [key for key in now if key not in there]
    return [f"settings that are new since: {some_of(new, 9)}"] if new else []


def _environment() -> dict[str, str]:
    from kaggle_kit.train.crossval import describe_environment

    return {**describe_environment(), **{package: metadata.version(package) for package in MORE_PACKAGES}}


def _changes(baseline: Baseline, now: dict[str, str]) -> list[str]:
    """Return sentences on what of the environment is another now."""
    before = baseline.environment
    names = [
        name for name in (*before, *(name for name in now if name not in before)) if before.get(name) != now.get(name)
    ]
    return [f"since then: {name} {before.get(name, 'absent')} became {now.get(name, 'absent')}" for name in names]


def _squares(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _seed_line(score: SeedScore) -> str:
    return f"  seed {score.seed}: {score.total:.4f} in {score.seconds:.0f} s"


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is no baseline ({error}); record it with `kaggle-kit baseline record`")
