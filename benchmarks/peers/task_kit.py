"""kaggle_kit: `folds`, `train`, `bundle` as its README has them, and the bundle through its Predictor.

A user writes the task file and these commands: `user_text`, whose lines `side_by_side.py` counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
from tasks import Clock, Said, Spec, TimeIsUp, begin, measure_prediction, report, save_said, size_mb

from kaggle_kit.labels import Classes
from kaggle_kit.task import Task

WIDTH = 120


def commands(spec: Spec, *, data: str, task: str, max_hours: float) -> dict[str, list[str]]:
    """Return the commands of the whole way, by name."""
    run = f"runs/{spec.model}"
    train = [f"task={task}", f"data={data}", "folds=folds.parquet", f"out={run}", "fold=0", f"model.name={spec.model}"]
    settings = [f"model.input_size=[{spec.size[0]},{spec.size[1]}]", f"loader.batch_size={spec.batch}"]
    chosen = [f"epochs={spec.epochs}", f"max_hours={max_hours:.5f}", f"seed={spec.seed}"]
    return {
        "folds": ["folds", task, data, "--out", "folds.parquet", *spec.scheme],
        "train": ["train", *train, *settings, *chosen],
        "bundle": ["bundle", run, "--out", "bundle"],
        "predict": ["predict", "bundle", "hidden", "--out", "submission.csv"],
    }


def user_text(ground: Path, *, model: str, size: tuple[int, int], batch: int, scheme: tuple[str, ...]) -> str:
    """Return what a user writes: the task file, and the commands."""
    spec = Spec(
        task="",
        ground=str(ground),
        out="",
        model=model,
        size=size,
        batch=batch,
        epochs=20,
        minutes=5,
        seed=0,
        scheme=scheme,
        trial_s=0,
    )
    told = commands(spec, data="data", task="task.yaml", max_hours=spec.minutes / 60)
    lines = ["kaggle-kit " + " ".join(command) for command in told.values()]
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH, break_on_hyphens=False)]
    return (ground / "task.yaml").read_text(encoding="utf-8") + "\n".join(wrapped) + "\n"


def train(spec: Spec, *, trial: bool) -> None:
    """Train within the budget, folds and packing of the images included; export, predict, report."""
    _import_all()
    from torch.optim.optimizer import register_optimizer_step_post_hook

    clock = Clock(spec, trial=trial)
    register_optimizer_step_post_hook(clock.tick if trial else lambda *_: clock.count())
    root = spec.root.resolve()
    with contextlib.chdir(spec.folder):  # so that the commands read as a user's
        told = commands(spec, data=str(root / "data"), task=str(root / "task.yaml"), max_hours=1.0)
        _run(told["folds"])
        left = max(1e-4, spec.minutes / 60 - clock.elapsed / 3600)
        left = 100.0 if trial or spec.clock == "processor" else left  # max_hours is of the wall clock
        told = commands(spec, data=str(root / "data"), task=str(root / "task.yaml"), max_hours=left)
        try:
            _run(told["train"])
        except TimeIsUp:
            report(clock.trial_figures())
            return
        figures = clock.train_figures()
        started = time.perf_counter()
        _run(told["bundle"])
        figures["export_s"] = time.perf_counter() - started
    _say_as_trained(spec, root, figures)


def _import_all() -> None:
    """Import before the clock starts, as the other contenders do."""
    import albumentations  # noqa: F401
    import lightning_fabric  # noqa: F401
    import timm.optim  # noqa: F401
    import torch

    import kaggle_kit.cli
    import kaggle_kit.experiment
    import kaggle_kit.export.bundle
    import kaggle_kit.train.crossval  # noqa: F401

    torch.set_num_threads(1)


def _run(command: list[str]) -> None:
    from kaggle_kit.cli import main as kaggle_kit

    with contextlib.redirect_stdout(sys.stderr):
        code = kaggle_kit(command)
    if code:
        raise SystemExit(f"kaggle-kit {command[0]} ended with {code}")


def _say_as_trained(spec: Spec, root: Path, figures: dict[str, float]) -> None:
    """Write what the trained torch network says of the hidden test, and report."""
    from kaggle_kit.runs import read_run
    from kaggle_kit.sources import open_source
    from kaggle_kit.train.checkpoint import load_checkpoint
    from kaggle_kit.train.predict import EVAL_BATCH, predict_batches

    run = read_run(spec.folder / "runs" / spec.model)
    network, _ = load_checkpoint(run.checkpoint(0))
    images = np.concatenate([chunk.images for chunk in open_source(run.task, "test", root / "hidden").chunks()])
    probs = predict_batches(network, np.array_split(images, -(-len(images) // EVAL_BATCH)))
    decided = {head: probs[head].argmax(axis=1) for head in run.task.heads}
    save_said(spec, "training", _named(run.task, decided))
    summary = run.folds[0]
    report(
        {
            **figures,
            "epoch_kept": summary.epoch,
            "ended_early": bool(summary.stopped),
            "artefact": str(spec.folder / "bundle"),
            "artefact_mb": size_mb(spec.folder / "bundle"),
            "versions": run.environment,
        }
    )


def _named(task: Task, decided: Classes) -> Said:
    return {name: np.array(head.class_values)[decided[name]] for name, head in task.heads.items()}


def predict(spec: Spec) -> None:
    """Predict from the bundle alone."""
    from kaggle_kit.runtime.predictor import Predictor
    from kaggle_kit.sources import open_source

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    predictor = Predictor(spec.folder / "bundle", say=say)
    task = predictor.bundle.task

    def first() -> object:
        test = open_source(task, "test", spec.root / "hidden", on_broken="blank")
        return predictor.run(next(iter(test.chunks(stop=1))).images)

    def whole() -> Said:
        test = open_source(task, "test", spec.root / "hidden", on_broken="blank")
        return _named(task, predictor.decide(predictor.predict(test)))

    measure_prediction(spec, first, whole)


def main() -> None:
    """Do one stage."""
    stage, spec = begin()
    if stage == "predict":
        predict(spec)
    else:
        train(dataclasses.replace(spec, epochs=10_000) if stage == "trial" else spec, trial=stage == "trial")


if __name__ == "__main__":
    main()
