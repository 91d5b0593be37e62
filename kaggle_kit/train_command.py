"""The commands around training: `train`, `lr-find`, `show-augment`, `weights`, `sweep` and `baseline`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_kit.commands import CHECK_FAILED, DONE, Result
from kaggle_kit.errors import Interrupted, KitError, SettingError

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder
    from kaggle_kit.experiment import Experiment
    from kaggle_kit.runs import Run

_EXAMPLE = "task=digits data=./digits/data folds=folds.parquet"
_SETTINGS_HELP = "as for `kaggle-kit train`"


def add_train_parsers(add: Adder) -> None:
    """Add the commands, in the order they are used in."""
    for add_one in (_add_train, _add_lr_find, _add_show_augment, _add_weights, _add_sweep, _add_baseline):
        add_one(add)


def _add_train(add: Adder) -> None:
    train = add(
        "train",
        train_models,
        "train the folds of one model; the same command goes on with a training that was cut off",
        f"kaggle-kit train {_EXAMPLE} out=runs/a model=resnet18 epochs=10\n"
        f"  kaggle-kit train {_EXAMPLE} out=runs/lr optim.lr=1e-3,3e-3 --multirun\n"
        "  kaggle-kit train experiment=bengali data=./bengali folds=folds.parquet out=runs/b\n"
        "  kaggle-kit train like=runs/a out=runs/a_everything\n"
        f"  torchrun --nproc-per-node 2 -m kaggle_kit train {_EXAMPLE} out=runs/two_gpus",
    )
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="task=, data=, folds= and out= are needed; --settings lists all others",
    )
    train.add_argument("--settings", action="store_true", help="print every setting with its default, and stop")
    train.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="train every combination of listed values, each into a folder of its own in out=",
    )


def _add_lr_find(add: Adder) -> None:
    find = add(
        "lr-find",
        lr_find,
        "try growing learning rates on a copy of the network and suggest one",
        f"kaggle-kit lr-find {_EXAMPLE} model=resnet18 --out lr.png",
    )
    find.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"{_SETTINGS_HELP}; out= is not needed")
    find.add_argument(
        "--out", type=Path, default=Path("lr.png"), metavar="FILE", help="the plot (default: %(default)s)"
    )
    find.add_argument("--low", type=float, default=1e-7, metavar="RATE", help="default: %(default)s")
    find.add_argument("--high", type=float, default=10.0, metavar="RATE", help="default: %(default)s")
    find.add_argument("--steps", type=int, default=100, metavar="N", help="default: %(default)s")


def _add_show_augment(add: Adder) -> None:
    show = add(
        "show-augment",
        show_augment,
        "draw train images as the network will see them, and a mixed batch with its targets",
        "kaggle-kit show-augment task=digits data=./digits/data augment=strong mix.cutmix=1 --out sheet.png",
    )
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"{_SETTINGS_HELP}; task= and data= are needed")
    show.add_argument(
        "--out", type=Path, default=Path("augment.png"), metavar="FILE", help="the picture (default: %(default)s)"
    )
    show.add_argument("--images", type=int, default=8, metavar="N", help="how many (default: %(default)s)")
    show.add_argument("--versions", type=int, default=7, metavar="N", help="of each (default: %(default)s)")


def _add_weights(add: Adder) -> None:
    weights = add(
        "weights",
        weights_of_models,
        "list the pretrained weights that models need, and pack them for where there is no internet",
        "kaggle-kit weights resnet50 seresnext50_32x4d --out ./weights\n"
        f"  kaggle-kit train {_EXAMPLE} out=runs/a model=resnet50 model.pretrained=true model.weights=./weights",
    )
    weights.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="timm model names, such as resnet50 or resnet50.a1_in1k, or run folders",
    )
    weights.add_argument(
        "--out", type=Path, metavar="DIR", help="pack them into this folder, fetching what is not here"
    )
    weights.add_argument(
        "--from",
        dest="weights_from",
        type=Path,
        metavar="PATH",
        help="with --out: a .safetensors file, or a folder of them",
    )


def _add_sweep(add: Adder) -> None:
    sweep = add(
        "sweep",
        sweep_settings,
        "search settings by Optuna; the same command, also on other machines, joins the search or goes on with it",
        f"kaggle-kit sweep {_EXAMPLE} out=sweeps/a 'optim.lr=log(1e-4,1e-2)' 'epochs=int(5,20)' --trials 30",
    )
    sweep.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help=f"{_SETTINGS_HELP}; a VALUE may be uniform(a,b), log(a,b), int(a,b) or choice(a,b,...); without any, the "
        "kit's own ranges",
    )
    sweep.add_argument("--trials", type=int, default=30, metavar="N", help="in all (default: %(default)s)")
    sweep.add_argument("--space", type=Path, metavar="FILE", help="a YAML file of ranges")
    sweep.add_argument(
        "--storage", default="", metavar="URL", help="a database that several machines share (default: OUT/study.db)"
    )
    sweep.add_argument("--study", default="", metavar="NAME", help="in that database")
    sweep.add_argument("--hours", type=float, metavar="H", help="end after so many hours")
    sweep.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (default: %(default)s)")
    sweep.add_argument("--no-prune", action="store_true", help="train every trial to its end")


def _add_baseline(add: Adder) -> None:
    baseline = add(
        "baseline",
        baseline_of_recipe,
        "record what a small fixed recipe scores, and check after every change whether it still does",
        "kaggle-kit baseline record\n  kaggle-kit baseline check",
    )
    baseline.add_argument(
        "what",
        choices=("record", "check"),
        help="record: train several seeds and write what they score; check: train some "
        "of them again; exit code 1: the score went down by more than seed noise",
    )
    baseline.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="record: one's own recipe (default: a minute on sample images)",
    )
    baseline.add_argument(
        "--file", type=Path, default=Path("baseline.json"), metavar="FILE", help="default: %(default)s"
    )
    baseline.add_argument("--seeds", type=int, metavar="N", help="default: 5 to record, 3 to check")


def train_models(options: argparse.Namespace) -> tuple[Result, int]:
    """Train the folds of one model, or of several."""
    from kaggle_kit.experiment import compose_experiment, describe_settings, expand_multirun

    if options.settings:
        print(describe_settings())
        return {}, DONE
    if not options.multirun:
        run = _train(compose_experiment(options.overrides))
        _print_run(run)
        return _plain_run(run), DONE
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("--multirun does not go with torchrun; start each training by a torchrun of its own")
    jobs = [(name, compose_experiment(one)) for name, one in expand_multirun(options.overrides)]
    finished: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, experiment in jobs:
        try:
            finished[name] = _train(_into(experiment, name))
        except Interrupted:
            raise  # Ctrl-C ends them all
        except KitError as error:
            failed[name] = str(error)
            print(f"{name}: {error}")
    _print_ranking(finished, failed)
    return {"runs": {name: _plain_run(run) for name, run in finished.items()}, "failed": failed}, (
        CHECK_FAILED if failed else DONE
    )


def _train(experiment: Experiment) -> Run:
    from kaggle_kit.experiment import train_folds
    from kaggle_kit.runs import read_run
    from kaggle_kit.train.everything import train_everything

    if experiment.like is not None:
        return train_everything(
            read_run(experiment.like),
            out=experiment.out,
            packed=experiment.packed,
            max_hours=experiment.train.max_hours,
            log=experiment.train.log,
            num_workers=experiment.train.loader.num_workers,
            overwrite=experiment.overwrite,
        )
    return train_folds(experiment)


def _into(experiment: Experiment, name: str) -> Experiment:
    import dataclasses

    return dataclasses.replace(experiment, out=experiment.out / name)


def _print_run(run: Run) -> None:
    from kaggle_kit.scores import format_scores

    for fold, summary in run.folds.items():
        what = f"fold {fold}: {summary.score}" if summary.score else "everything: not scored"
        kept = "" if summary.weights == "raw" else f", {summary.weights} weights"
        stopped = f"; ended early: {summary.stopped}" if summary.stopped else ""
        print(f"{what} at epoch {summary.epoch} of {run.config.epochs}{kept}, {summary.seconds:.0f} s{stopped}")
    print("\n".join(format_scores({"out of fold": run.scores})))
    early = any(summary.stopped for summary in run.folds.values())
    if early:
        print(f"{run.folder}: ended early; the same command with a larger max_hours goes on")
    if run.like:
        part = "for a part of its epochs" if early else "to its end"
        followed = Path(run.like).name
        print(f"{run.folder}: trained on everything {part}; the scores are those of {followed}, which it follows")
        return
    edited = "" if run.config.edits is None else f", against labels as edited in {run.folder / run.config.edits}"
    print(f"{run.folder}: out-of-fold {run.score.total:.4f}{edited}; look at {run.report}")
    if not early:
        print(f"next: kaggle-kit blend {run.folder} OTHER_RUN ... --out blend.json")


def _plain_run(run: Run) -> Result:
    return {"out": run.folder, "scores": run.scores, "folds": run.folds}


def _print_ranking(finished: dict[str, Run], failed: dict[str, str]) -> None:
    from kaggle_kit.metrics import gain

    ranked = sorted(finished.items(), key=lambda item: -gain(item[1].task.metric, item[1].score.total, 0.0))
    width = max((len(name) for name in [*finished, *failed]), default=0)
    for name, run in ranked:
        print(f"{name:<{width}}  {run.score}")
    for name, message in failed.items():
        print(f"{name:<{width}}  failed: {message}")


def lr_find(options: argparse.Namespace) -> tuple[Result, int]:
    """Suggest a learning rate."""
    from kaggle_kit.experiment import compose_experiment
    from kaggle_kit.files import check_output_file

    check_output_file(options.out, ".png")
    experiment = compose_experiment(options.overrides, needs=("task", "data", "folds"))

    from kaggle_kit.folds import Folds
    from kaggle_kit.task import read_task
    from kaggle_kit.train.lr_find import save_lr_plot
    from kaggle_kit.train.range_test import find_training_lr

    found = find_training_lr(
        read_task(experiment.task),
        experiment.train,
        data=experiment.data,
        folds=Folds.load(experiment.folds),
        packed=experiment.packed,
        beside=experiment.folds.parent,
        fold=experiment.fold or 0,
        low=options.low,
        high=options.high,
        num_steps=options.steps,
    )
    save_lr_plot(options.out, found)
    print(found.how)
    if found.suggestion is not None:
        print(f"train with optim.lr={found.suggestion:.2g}; {options.out} shows the curve")
    return {"out": options.out, "suggestion": found.suggestion, "candidates": found.candidates}, DONE


def show_augment(options: argparse.Namespace) -> tuple[Result, int]:
    """Draw augmented images."""
    from kaggle_kit.experiment import compose_experiment
    from kaggle_kit.files import check_output_file

    check_output_file(options.out, ".png")
    for name in ("images", "versions"):
        if not 1 <= getattr(options, name) <= 100:
            raise SettingError(f"--{name} is {getattr(options, name)}; expected 1 to 100")
    experiment = compose_experiment(options.overrides, needs=("task", "data"))

    from kaggle_kit.train.pictures import show_augment as draw
    from kaggle_kit.train.rows import labelled_images

    beside = experiment.folds.parent if str(experiment.folds) != "." else options.out.parent
    task, source, labels = labelled_images(
        experiment.task,
        experiment.data,
        packed=experiment.packed,
        beside=beside,
        edits=None if experiment.train.edits is None else Path(experiment.train.edits),
    )
    files = draw(
        task,
        experiment.train,
        source,
        labels,
        out=options.out,
        num_images=options.images,
        num_versions=options.versions,
    )
    for file in files:
        print(file)
    return {"files": files}, DONE


def weights_of_models(options: argparse.Namespace) -> tuple[Result, int]:
    """List pretrained weights, or pack them."""
    from kaggle_kit.train.weights import list_weights, pack_weights

    if options.weights_from and not options.out:
        raise SettingError("--from says what to pack; say with --out where to")
    models = [_model_of(name) for name in options.models]
    if options.out:
        files = pack_weights(models, options.out, weights_from=options.weights_from)
        for file in files:
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
        print(
            f"train with model.pretrained=true model.weights={options.out}; attach the folder where there is no "
            "internet"
        )
        return {"out": options.out, "files": files}, DONE
    needed = list_weights(models)
    for one in needed:
        size = "" if one.size_bytes is None else f", {one.size_bytes / 1e6:.1f} MB"
        place = "not on this machine" if one.cached is None else f"here{size}"
        license_text = f", {one.license}" if one.license else ""
        print(f"{one.model}: {one.hub_id}/{one.file}, {place}{license_text}")
    return {"weights": needed}, DONE


def _model_of(name: str) -> str:
    """Return the model of a run's folder or of a preset, or the name as it is."""
    from kaggle_kit.experiment import preset_models
    from kaggle_kit.runs import read_run

    if (Path(name) / "run.json").is_file():
        run = read_run(Path(name))
        if run.is_adopted:
            raise SettingError(f"run {name} was adopted from elsewhere, and needs no pretrained weights; leave it out")
        return run.config.model.name
    return preset_models().get(name, name)


def sweep_settings(options: argparse.Namespace) -> tuple[Result, int]:
    """Search settings."""
    from kaggle_kit.sweep import run_sweep
    from kaggle_kit.sweep.report import format_sweep

    result = run_sweep(
        options.overrides,
        trials=options.trials,
        space_file=options.space,
        storage=options.storage,
        study_name=options.study,
        hours=options.hours,
        seed=options.seed,
        prune=not options.no_prune,
    )
    print("\n".join(format_sweep(result)))
    return {"out": result.out, "trials": result.trials}, DONE


def baseline_of_recipe(options: argparse.Namespace) -> tuple[Result, int]:
    """Record or check a baseline."""
    from kaggle_kit.baseline import check_baseline, format_baseline, format_verdict, record_baseline

    seeds: dict[str, Any] = {} if options.seeds is None else {"num_seeds": options.seeds}
    if options.what == "record":
        recorded = record_baseline(options.file, options.overrides, **seeds)
        print("\n".join(format_baseline(recorded)))
        print(f"{options.file}: recorded; `kaggle-kit baseline check` trains some of it again")
        return {"file": options.file, "baseline": recorded}, DONE
    if options.overrides:
        raise SettingError(f"{options.overrides[0]!r}: check trains the recipe that was recorded; leave settings out")
    verdict = check_baseline(options.file, **seeds)
    print("\n".join(format_verdict(verdict)))
    return {
        "file": options.file,
        "outcome": verdict.outcome,
        "gain": verdict.gain,
    }, DONE if verdict.passed else CHECK_FAILED
