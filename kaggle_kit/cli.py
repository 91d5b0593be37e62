"""The command line: `kaggle-kit COMMAND`; what the commands do is in `commands`."""

from __future__ import annotations

import argparse
import difflib
import io
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import kaggle_kit
from kaggle_kit import commands
from kaggle_kit.audit_command import add_audit_parsers
from kaggle_kit.blend_command import add_blend_parser
from kaggle_kit.doctor_command import add_doctor_parsers
from kaggle_kit.errors import KitError, did_you_mean
from kaggle_kit.export_command import add_export_parsers
from kaggle_kit.kaggle_command import add_kaggle_parsers
from kaggle_kit.machine import is_first_process, let_idle_threads_sleep
from kaggle_kit.rehearse_command import add_rehearse_parsers, parse_seconds
from kaggle_kit.review_command import add_review_parser
from kaggle_kit.runs_command import add_runs_parser, with_listing
from kaggle_kit.train_command import add_train_parsers
from kaggle_kit.wheelhouse_command import add_wheelhouse_parsers

Command = Callable[[argparse.Namespace], tuple[commands.Result, int]]
Adder = Callable[[str, Command, str, str], argparse.ArgumentParser]
TASK_HELP = "a preset's name (bengali, ships, digits), or the path of a task.yaml"
SCHEMES = (
    "stratified",
    "grouped",
    "stratified-grouped",
    "unseen",
    "leave-one-group-out",
    "holdout",
    "everything",
)
BASE_PACKAGES = ("numpy", "cv2", "pyarrow", "yaml")
EXTRA_OF = {"onnxruntime": "[cpu]", "starlette": "[audit]", "uvicorn": "[audit]", "packaging": "[kaggle]"}
DATA_HELP = "the competition's data folder"
_SETTING = re.compile(r"(?:^| )--([A-Za-z][\w.-]*)(?:[= ](?!-)(\S+))?")
_CLOSE = 0.75  # how alike an option must be to be meant
_CHOICE = re.compile(r"invalid choice: '(?P<given>.*?)' \(choose from (?P<known>.*)\)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when done, 1 when the check the command makes failed, 2 for what the user can mend.
    """
    let_idle_threads_sleep()
    options, unknown = make_parser().parse_known_args(with_listing(sys.argv[1:] if arguments is None else arguments))
    if unknown:
        options.parser.refuse(unknown, takes_settings=hasattr(options, "overrides"))
    if not is_first_process():
        sys.stdout = io.StringIO()  # the first process that `torchrun` started speaks for all
    try:
        result, code = options.run(options)
    except KitError as error:
        return _fail(options, str(error))
    except ModuleNotFoundError as error:
        extra = "" if error.name in BASE_PACKAGES else EXTRA_OF.get(str(error.name), "[train]")
        return _fail(options, f"this command needs {error.name}; pip install 'kaggle_kit{extra}'")
    except ImportError as error:
        return _fail(options, f"a package cannot be loaded ({error}); install it again, or the library it names")
    except OSError as error:
        return _fail(options, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except KeyboardInterrupt:
        return _fail(options, "interrupted")
    if options.json:
        print(json.dumps(_jsonable(result), ensure_ascii=False))
    return int(code)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        choice = _CHOICE.search(message)
        hint = did_you_mean(choice["given"], re.findall(r"[^\s',]+", choice["known"]), listed=False) if choice else ""
        self.exit(commands.USER_CAN_MEND, f"kaggle-kit: {message}{hint}; see {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str], *, takes_settings: bool) -> NoReturn:
        """Print one line about arguments that this command does not know, and exit with 2."""
        given = " ".join(unknown)
        close = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, n=1, cutoff=_CLOSE)
        settings = [f"{name.replace('-', '_')}={value or '...'}" for name, value in _SETTING.findall(given)]
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if not close and takes_settings and settings:
            hint = f"; settings are written without dashes: {' '.join(settings)}"
        self.error(f"unrecognized arguments: {given}{hint}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="kaggle-kit",
        description="From a Kaggle image competition's files to a submission written offline, verified at every step.",
        epilog="Start with `kaggle-kit demo`; then `kaggle-kit COMMAND --help`: each shows an example.",
    )
    parser.add_argument("--version", action="version", version=f"kaggle_kit {kaggle_kit.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, purpose: str, example: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = subparsers.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            epilog=f"example:\n  {example}\n\nexit code: 0 done, 1 the check it makes failed, 2 you can mend it",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("--json", action="store_true", help="print one machine-readable line last")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.set_defaults(run=run, parser=one)
        return one

    for add_commands in (
        _add_samples,
        add_audit_parsers,
        add_review_parser,
        _add_data,
        add_train_parsers,
        add_blend_parser,
        add_runs_parser,
        add_export_parsers,
        _add_kernel,
        add_rehearse_parsers,
        add_wheelhouse_parsers,
        add_kaggle_parsers,
        add_doctor_parsers,
    ):
        add_commands(add)
    return parser


def _add_samples(add: Adder) -> None:
    demo = add("demo", commands.demo, "go the whole way on the sample competition", "kaggle-kit demo --fast")
    demo.add_argument("--out", type=Path, default=Path("kaggle_kit_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument(
        "--fast", action="store_true", help="fewer images and epochs, lower scores: one to two minutes on 2 cores"
    )

    sample = add("sample", commands.sample, "make a sample competition, offline", "kaggle-kit sample digits ./digits")
    sample.add_argument("kind", choices=("digits", "ships"), help="digits: wide parquet, 3 heads; ships: JPEGs, 1 head")
    sample.add_argument("folder", type=Path, metavar="DIR", help="gets data/, hidden/ and task.yaml")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")


def _add_data(add: Adder) -> None:
    folds = add(
        "folds",
        commands.folds,
        "divide the train images into folds, equal images into the same; or check a fold file for leaks",
        "kaggle-kit folds digits ./digits/data --out folds.parquet --scheme unseen --n 5\n"
        "  kaggle-kit folds digits ./digits/data --check somebodys_folds.csv",
    )
    folds.add_argument("task", metavar="TASK", help=TASK_HELP)
    folds.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    folds.add_argument("--out", type=Path, metavar="FILE", help="the fold file, parquet")
    folds.add_argument(
        "--scheme",
        choices=SCHEMES,
        help="stratified: every class of every head in like shares; "
        "grouped: no group (the task's `groups`: a writer, a patient) in two folds; "
        "stratified-grouped: both, as well as can be; "
        "unseen: each fold holds out whole combinations of heads, for a test that shows new ones; "
        "leave-one-group-out: a fold a group; holdout: one part validates, once; "
        "everything: all train, none validates (default: stratified; with --check: as the file says)",
    )
    folds.add_argument(
        "--valid-share", type=float, default=0.15, metavar="SHARE", help="holdout: validates (default: %(default)s)"
    )
    folds.add_argument(
        "--unseen-share",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="unseen: the share of images in held-out combinations; what you expect of the test (default: %(default)s)",
    )
    folds.add_argument(
        "--rare",
        choices=("error", "train"),
        default="error",
        help="the only image of a class cannot both train and validate: refuse it, or let it train in every fold "
        "(default: %(default)s)",
    )
    folds.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="write no folds; check this file (or --out), parquet or CSV of ids and `fold`; exit code 1: leaks; "
        "equal images are looked up in the packed store beside it, here or in --packed",
    )
    folds.add_argument(
        "--packed",
        type=Path,
        metavar="DIR",
        help="the packed store, made if absent (default: one beside --out, or packed_images/ there)",
    )
    folds.add_argument(
        "--labels-only",
        action="store_true",
        help="do not look at the images: fast, but equal images may then lie in two folds",
    )
    folds.add_argument("--audit", type=Path, metavar="DIR", help="an audit's folder: near duplicates share a fold too")
    folds.add_argument("--n", type=int, default=5, metavar="N", help="number of folds (default: %(default)s)")
    folds.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")

    pack = add(
        "pack",
        commands.pack,
        "convert the train images once, to be read fast",
        "kaggle-kit pack digits ./digits/data --out ./packed",
    )
    pack.add_argument("task", metavar="TASK", help=TASK_HELP)
    pack.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="the packed store")
    pack.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="stored size, in pixels, instead of the task's"
    )
    pack.add_argument(
        "--fit",
        choices=("letterbox", "stretch", "content"),
        help="with --size: keep the aspect ratio and pad; stretch; or cut to a glyph's strokes, then pad "
        "(default: the task's, or letterbox)",
    )
    pack.add_argument(
        "--kind",
        choices=("auto", "raw", "encoded"),
        default="auto",
        help="raw pixels (read fastest), the images' own files (smaller), or by the arithmetic shown "
        "(default: %(default)s)",
    )
    pack.add_argument(
        "--add",
        type=_tagged,
        action="append",
        default=[],
        metavar="TAG=TASK:DATA",
        help="further labelled images, such as an older competition's: they train every fold and validate none",
    )
    pack.add_argument("--workers", type=int, metavar="N", help="processes (default: by source and cores)")

    in_folds = "counts with its new class or is in no fold; train then needs edits=FILE too"
    in_pack = "is checked only: every image is packed, so that no edit asks for packing again, and folds and train obey"
    for parser, effect in ((folds, in_folds), (pack, in_pack)):
        help_text = f"an edits.jsonl: what it relabels or drops {effect}"
        parser.add_argument("--edits", type=Path, metavar="FILE", help=help_text)


def _add_kernel(add: Adder) -> None:
    predict = add(
        "predict",
        commands.predict,
        "write a submission with a bundle",
        "kaggle-kit predict ./bundle ./digits/data --out submission.csv\n"
        "  kaggle-kit predict ./bundle ./digits/data --out submission.csv --probs probs.npz\n"
        "  kaggle-kit train task=digits data=./digits/data folds=folds.parquet out=runs/b pseudo.predictions=probs.npz",
    )
    predict.add_argument("bundle", type=Path, metavar="BUNDLE", help="made by `kaggle-kit bundle`")
    predict.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    predict.add_argument("--out", type=Path, required=True, metavar="FILE", help="the submission, CSV")
    predict.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help="only the first N runs of the blend's running order, with the mix and the decision rules that were fitted "
        "for just these, as a kernel that is cut short would (default: all)",
    )
    predict.add_argument(
        "--probs",
        type=Path,
        metavar="FILE",
        help="also the probabilities of every image, .npz, before decision rules and class shares: what train's "
        "pseudo.predictions takes",
    )
    predict.add_argument(
        "--prior-shift",
        action="store_true",
        help="correct for the test's class shares, even where the bundle does not ask for it; see blend --help",
    )
    predict.add_argument(
        "--time-limit",
        type=parse_seconds,
        metavar="2h",
        help="like 90s, 30m or 2h: when the submission must be there. Where that is short, last runs, then views are "
        "left out for some images, and what that costs is said (default: in a Kaggle kernel the task's own limit less "
        "5 %%, else none)",
    )
    predict.add_argument(
        "--batch", type=_count, metavar="N", help="images at once (default: 64 on a CPU, 256 on a GPU)"
    )
    _add_device(predict)

    bench = add(
        "bench",
        commands.bench,
        "measure a bundle on this machine: each graph, the bare sessions, the whole way",
        "kaggle-kit bench ./bundle ./digits/data\n"
        "  kaggle-kit bench ./bundle ./digits/data --costs costs.json\n"
        "  kaggle-kit blend runs/a runs/b --out blend.json --budget 2 --images 200000 --costs costs.json",
    )
    bench.add_argument("bundle", type=Path, metavar="BUNDLE", help="made by `kaggle-kit bundle`")
    bench.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    bench.add_argument("--costs", type=Path, metavar="FILE", help="write what runs take, JSON, to plan with at home")
    bench.add_argument("--images", type=_count, default=512, metavar="N", help="at most (default: %(default)s)")
    bench.add_argument(
        "--batches", type=_count, nargs="+", default=[16, 64, 256], metavar="N", help="default: 16 64 256"
    )
    _add_device(bench)

    score = add(
        "score",
        commands.score,
        "score a submission against its solution",
        "kaggle-kit score digits submission.csv ./digits/hidden/solution.csv --data ./digits/data",
    )
    score.add_argument("task", metavar="TASK", help=TASK_HELP)
    score.add_argument("submission", type=Path, help="the answer, CSV")
    score.add_argument("solution", type=Path, help="the truth, CSV in the same form")
    score.add_argument("--data", type=Path, metavar="DATA", help="data folder: unseen combinations scored apart")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "tensorrt", "openvino"),
        default="auto",
        help="auto: TensorRT where --engines fit, else CUDA where it works, else the CPU; any other, or an error "
        "(default: %(default)s)",
    )
    parser.add_argument("--engines", type=Path, metavar="DIR", help="TensorRT engines, from kernels/build_engine")


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number above 0")
    return number


def _tagged(text: str) -> tuple[str, str, Path]:
    tag, equals, rest = text.partition("=")
    parts = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]+):(.+)", rest)  # a Windows drive has a colon of its own
    if not (tag and equals and parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no TAG=TASK:DATA; write it like old=old.yaml:./old_data")
    return tag, parts[1], Path(parts[2])


def _fail(options: argparse.Namespace, message: str) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"kaggle-kit: {' '.join(message.split())}", file=sys.stderr)
    if options.json:
        print(json.dumps({"error": message}, ensure_ascii=False))
    return commands.USER_CAN_MEND


def _jsonable(value: object) -> Any:
    from kaggle_kit.settings import plain

    return json.loads(json.dumps(plain(value), default=str))


if __name__ == "__main__":
    sys.exit(main())
