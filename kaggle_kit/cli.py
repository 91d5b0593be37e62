"""The command line: `kaggle-kit COMMAND`. Every command imports only what it needs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kaggle_kit
from kaggle_kit.errors import KitError

Result = dict[str, Any]
Command = Callable[[argparse.Namespace], tuple[Result, int]]
DONE, CHECK_FAILED, USER_CAN_MEND = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when done, 1 when the check the command makes failed, 2 for what the user can mend.
    """
    options = make_parser().parse_args(arguments)
    try:
        result, code = options.run(options)
    except KitError as error:
        return _fail(options, str(error))
    except ImportError as error:
        extra = "cpu" if error.name == "onnxruntime" else "train"
        return _fail(options, f"this command needs {error.name}; pip install 'kaggle_kit[{extra}]'")
    except OSError as error:
        return _fail(options, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except KeyboardInterrupt:
        return _fail(options, "interrupted")
    if options.json:
        print(json.dumps(_jsonable(result), ensure_ascii=False))
    return int(code)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="kaggle-kit",
        description="From a Kaggle image competition's files to a submission written offline, verified at every step.",
        epilog="Start with: kaggle-kit demo      Then: kaggle-kit COMMAND --help, each with an example.",
    )
    parser.add_argument("--version", action="version", version=f"kaggle_kit {kaggle_kit.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    add = _adder(commands)
    demo = add("demo", _demo, "the whole way on the sample competition", "kaggle-kit demo --fast")
    demo.add_argument("--out", type=Path, default=Path("kaggle_kit_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--fast", action="store_true", help="fewer images and epochs: under 90 seconds on 2 cores")

    sample = add("sample", _sample, "make a sample competition, offline", "kaggle-kit sample digits ./digits")
    sample.add_argument("kind", choices=("digits", "ships"), help="digits: wide parquet, 3 heads; ships: JPEGs, 1 head")
    sample.add_argument("folder", type=Path, metavar="DIR", help="gets data/, hidden/ and task.yaml")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")

    folds = add(
        "folds",
        _folds,
        "divide the train images into folds",
        "kaggle-kit folds digits ./digits/data --out folds.parquet --scheme stratified --n 5",
    )
    _add_task_and_data(folds)
    folds.add_argument("--out", type=Path, required=True, metavar="FILE", help="the fold file, parquet")
    folds.add_argument(
        "--scheme",
        choices=("stratified", "grouped"),
        default="stratified",
        help="stratified: like shares of every class of every head; grouped: no group in two folds (default: %(default)s)",
    )
    folds.add_argument("--n", type=int, default=5, metavar="N", help="number of folds (default: %(default)s)")
    folds.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")

    pack = add(
        "pack",
        _pack,
        "convert the train images once, to be read fast",
        "kaggle-kit pack digits ./digits/data --out ./packed",
    )
    _add_task_and_data(pack)
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="the packed store")
    pack.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="stored size instead of the task's, letterboxed"
    )

    train = add(
        "train",
        _train,
        "train the folds of one model",
        "kaggle-kit train task=digits data=./digits/data folds=folds.parquet out=runs/a model=resnet18 epochs=10 "
        "optim.lr=1e-3",
    )
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="task=, data=, folds= and out= are needed; --settings lists all others with their defaults",
    )
    train.add_argument("--settings", action="store_true", help="print every setting with its default, and stop")

    blend = add("blend", _blend, "combine runs into one prediction", "kaggle-kit blend runs/a runs/b --out blend.json")
    blend.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; fold models share their run's weight"
    )
    blend.add_argument("--out", type=Path, required=True, metavar="FILE", help="the blend, JSON")

    for name, purpose in (("bundle", "export runs and their blend to one verified bundle"),):
        bundle = add(name, _bundle, purpose, "kaggle-kit bundle runs/a runs/b --blend blend.json --out ./bundle")
        bundle.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
        bundle.add_argument(
            "--blend", type=Path, metavar="FILE", help="made by `kaggle-kit blend`; default: equal weights"
        )
        bundle.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle")

    predict = add(
        "predict",
        _predict,
        "write a submission with a bundle",
        "kaggle-kit predict ./bundle ./digits/data --out submission.csv",
    )
    predict.add_argument("bundle", type=Path, metavar="BUNDLE", help="made by `kaggle-kit bundle`")
    predict.add_argument("data", type=Path, metavar="DATA", help="the competition's data folder")
    predict.add_argument("--out", type=Path, required=True, metavar="FILE", help="the submission, CSV")

    score = add(
        "score",
        _score,
        "score a submission against its solution",
        "kaggle-kit score digits submission.csv ./digits/hidden/solution.csv --data ./digits/data",
    )
    score.add_argument("task", metavar="TASK", help="a preset's name, or the path of a task.yaml")
    score.add_argument("submission", type=Path, help="the answer, CSV")
    score.add_argument("solution", type=Path, help="the truth, CSV in the same form")
    score.add_argument(
        "--data", type=Path, metavar="DATA", help="data folder: scores combinations unseen in train apart"
    )

    rehearse = add(
        "rehearse",
        _rehearse,
        "run a submission kernel offline as Kaggle will",
        "kaggle-kit rehearse kernels/submit --task digits --data ./digits/data --hidden ./digits/hidden --bundle ./bundle",
    )
    rehearse.add_argument("kernel", type=Path, metavar="KERNEL_DIR", help="with kernel-metadata.json and its script")
    rehearse.add_argument("--task", required=True, metavar="TASK", help="a preset's name, or the path of a task.yaml")
    rehearse.add_argument("--data", type=Path, required=True, metavar="DATA", help="the competition's data folder")
    rehearse.add_argument("--hidden", type=Path, required=True, metavar="DIR", help="the hidden test and solution.csv")
    rehearse.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="attached as a dataset")
    rehearse.add_argument(
        "--work",
        type=Path,
        default=Path("rehearsal"),
        metavar="DIR",
        help="mounts, log and submission (default: %(default)s)",
    )
    rehearse.add_argument("--time-limit", type=_seconds, metavar="2h", help="like 90s, 30m or 2h; default: the task's")
    rehearse.add_argument("--memory", type=float, metavar="GB", help="default: the task's")
    return parser


def _adder(commands: Any) -> Callable[..., argparse.ArgumentParser]:
    def add(name: str, run: Command, purpose: str, example: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            epilog=f"example:\n  {example}\n\nexit code: 0 done, 1 the check it makes failed, 2 you can mend it",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", action="store_true", help="print one machine-readable line last")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
        return parser

    return add


def _add_task_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", metavar="TASK", help="a preset's name (bengali, ships, digits), or the path of a task.yaml"
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="the competition's data folder")


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1]]
    except (KeyError, ValueError, IndexError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it like 90s, 30m or 2h") from None


def _demo(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.demo import FAST, format_demo, run_demo

    result = run_demo(options.out, FAST if options.fast else None)
    print(format_demo(result))
    stages = [{"stage": stage, "seconds": round(seconds, 2)} for stage, seconds, _ in result.stages]
    parity = [dataclasses.asdict(member.parity) for member in result.bundle.members]
    return {"stages": stages, "oof": result.oof, "hidden": result.hidden, "parity": parity, "out": result.folder}, DONE


def _sample(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.sample import make_sample

    sample = make_sample(options.kind, options.folder, seed=options.seed)
    print(f"{sample.data}: what the competitor sees; {sample.hidden}: the hidden test; {sample.task}: the task")
    return {"data": sample.data, "hidden": sample.hidden, "task": sample.task}, DONE


def _folds(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.folds import make_folds
    from kaggle_kit.labels import read_labels
    from kaggle_kit.task import read_task

    labels = read_labels(read_task(options.task), options.data)
    folds = make_folds(labels, options.scheme, num_folds=options.n, seed=options.seed)
    folds.save(options.out)
    sizes = [int((folds.fold == number).sum()) for number in range(folds.num_folds)]
    unseen = int(folds.unseen.sum())
    print(f"{options.out}: {folds.num_folds} {folds.scheme} folds of {sizes} images")
    print(f"{unseen:,} of {len(labels):,} images show a combination of heads that no other fold shows")
    return {"out": options.out, "sizes": sizes, "unseen": unseen, "data_hash": folds.data_hash}, DONE


def _pack(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.runs import pack_train
    from kaggle_kit.sources import resolve_stored
    from kaggle_kit.task import Stored, read_task

    task = read_task(options.task)
    if options.size:
        task = task.with_stored(Stored(height=options.size[0], width=options.size[1], fit="letterbox"))
    store = pack_train(resolve_stored(task, options.data), options.data, options.out)
    print(f"{options.out}: {len(store):,} images of {' x '.join(map(str, store.shape))}, {len(store.broken)} broken")
    for name, reason in list(store.broken.items())[:10]:
        print(f"  broken: {name}: {reason}")
    return {"out": options.out, "images": len(store), "shape": store.shape, "broken": store.broken}, DONE


def _train(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.experiment import compose_experiment, describe_settings

    if options.settings:
        print(describe_settings())
        return {}, DONE
    experiment = compose_experiment(options.overrides)

    from kaggle_kit.folds import Folds
    from kaggle_kit.task import read_task
    from kaggle_kit.train.crossval import train_run

    run = train_run(
        read_task(experiment.task),
        experiment.train,
        data=experiment.data,
        folds=Folds.load(experiment.folds),
        out=experiment.out,
        packed=experiment.packed,
        only=experiment.fold,
        overwrite=experiment.overwrite,
    )
    for fold, summary in run.folds.items():
        print(f"fold {fold}: {summary.score} at epoch {summary.epoch}, {summary.seconds:.0f} s")
    print(f"{run.folder}: out-of-fold {run.score} on {run.score.rows:,} images")
    return {"out": run.folder, "score": run.score, "folds": run.folds}, DONE


def _blend(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.ensemble import blend_predictions, equal_blend, save_blend
    from kaggle_kit.metrics import score_classes
    from kaggle_kit.runs import read_run

    runs = [read_run(folder) for folder in options.runs]
    blend = equal_blend([run.name for run in runs])
    oof = blend_predictions(blend, {run.name: run.oof() for run in runs})
    score = score_classes(runs[0].task, runs[0].labels().align(oof.ids).classes, oof.decide())
    save_blend(blend, options.out)
    for run in runs:
        print(f"{run.name}: out-of-fold {run.score}, weight {blend.weights[run.name]:.3f}")
    print(f"{options.out}: mean of {len(runs)} run(s), out-of-fold {score}")
    return {"out": options.out, "weights": blend.weights, "score": score}, DONE


def _bundle(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.ensemble import equal_blend, load_blend
    from kaggle_kit.export.bundle import write_bundle
    from kaggle_kit.runs import read_run

    runs = [read_run(folder) for folder in options.runs]
    blend = load_blend(options.blend) if options.blend else equal_blend([run.name for run in runs])
    bundle = write_bundle(runs, blend, options.out)
    for member in bundle.members:
        parity = member.parity
        print(
            f"{member.file}: weight {member.weight:.3f}; on {parity.rows:,} images {parity.decisions_changed} decisions "
            f"differ from torch, probabilities by at most {parity.max_abs_diff:.1e}"
        )
    print(f"{options.out}: {len(bundle.members)} member(s), out-of-fold {bundle.oof_score:.4f}")
    return {"out": options.out, "members": bundle.members, "oof_score": bundle.oof_score}, DONE


def _predict(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.runtime.predictor import predict_submission

    predicted = predict_submission(options.bundle, options.data, options.out)
    return {"out": options.out, "images": len(predicted.predictions), "broken": predicted.broken}, DONE


def _score(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.labels import read_labels
    from kaggle_kit.metrics import format_scores
    from kaggle_kit.submission import score_submission
    from kaggle_kit.task import read_task

    task = read_task(options.task)
    train = read_labels(task, options.data) if options.data else None
    score = score_submission(task, options.submission, options.solution, train=train)
    print("\n".join(format_scores({task.metric: score})))
    return {"metric": task.metric, "score": score}, DONE


def _rehearse(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.metrics import format_scores
    from kaggle_kit.platform.rehearse import rehearse
    from kaggle_kit.task import read_task

    task = read_task(options.task)
    result = rehearse(
        options.kernel,
        task,
        data=options.data,
        hidden=options.hidden,
        bundle=options.bundle,
        work=options.work,
        time_limit_s=options.time_limit,
        memory_gb=options.memory,
    )
    print(f"Kaggle would answer: {result.answer}{': ' + result.detail if result.detail else ''}")
    inputs = "inputs read-only" if result.read_only else "inputs not protected from writing here"
    print(f"{result.seconds:.1f} s, peak memory {result.peak_memory_gb:.2f} GB; {result.isolation}, {inputs}")
    if result.score is not None:
        print("\n".join(format_scores({"hidden test": result.score})))
    return dataclasses.asdict(result), DONE if result.answer == "Complete" else CHECK_FAILED


def _fail(options: argparse.Namespace, message: str) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"kaggle-kit: {' '.join(message.split())}", file=sys.stderr)
    if options.json:
        print(json.dumps({"error": message}, ensure_ascii=False))
    return USER_CAN_MEND


def _jsonable(value: object) -> Any:
    from kaggle_kit.settings import plain

    return json.loads(json.dumps(plain(value), default=str))
