"""What `kaggle-kit runs adopt` is told on its command line. Imports nothing heavy before it is used."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.errors import DataError, SettingError, some_of

if TYPE_CHECKING:
    from kaggle_kit.export.reading import Reading
    from kaggle_kit.runs import Run

PURPOSE = "make a run of ONNX models from elsewhere, with their out-of-fold predictions, to blend and bundle"
EXAMPLE = (
    "kaggle-kit runs adopt runs/keras --name keras_convnet --task task.yaml --data ./data --packed ./packed \\\n"
    "    --folds folds.parquet --oof keras_oof.npz --onnx keras_fold0.onnx keras_fold1.onnx \\\n"
    "    --size 128 128 --layout nhwc --mean 0 --std 1 --outputs root=dense_1 vowel=dense_2\n\n"
    "one's own torch modules are adopted in Python: kaggle_kit.export.adopt.adopt_modules"
)


def add_adopt_options(parser: argparse.ArgumentParser) -> None:
    """Add what models, images and predictions are, and how the models read."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the run's folder: new, or of an adopted run")
    needed = parser.add_argument_group("the models and what they are adopted for")
    for flag, kind, metavar, text in (
        ("name", str, "NAME", "what the model is called in the ledger; the run is called as its folder"),
        ("task", str, "TASK", "a preset's name or a task.yaml"),
        ("data", Path, "DATA", "the competition's data folder"),
        ("packed", Path, "DIR", "its packed images, from `kaggle-kit pack`, or `packed_images` beside a run"),
        ("folds", Path, "FILE", "folds.parquet: which model was validated on which images"),
        ("oof", Path, "FILE", ".npz of `ids` and `probs/HEAD`: each image's probabilities by the model of its fold"),
    ):
        needed.add_argument(f"--{flag}", type=kind, required=True, metavar=metavar, help=text)
    needed.add_argument(
        "--onnx", type=Path, nargs="+", required=True, metavar="FILE", help="the models, in the order of their folds"
    )
    needed.add_argument(
        "--everything",
        action="store_true",
        help="the one FILE was trained on all images; --folds and --oof are those of the cross-validation it follows",
    )
    needed.add_argument(
        "--like", type=Path, metavar="RUN", help="with --everything: the run folder of that cross-validation"
    )
    _add_reading(parser.add_argument_group("how the models read stored images, and what they say"))


def _add_reading(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="what they see, resized by area, antialiased: another resize changes a few decisions (default: the stored "
        "size)",
    )
    group.add_argument("--layout", default="nchw", metavar="nchw|nhwc", help="nhwc as in Keras (default: %(default)s)")
    group.add_argument("--dtype", default="float32", metavar="float32|uint8", help="(default: %(default)s)")
    for flag, text in (
        ("mean", "subtracted from pixels of 0 to 1, one for each channel or one (default: pixels of 0 to 255 go in)"),
        ("std", "what they are divided by then; --mean 0 --std 1 for pixels of 0 to 1"),
    ):
        group.add_argument(f"--{flag}", type=float, nargs="+", default=[], metavar="X", help=text)
    group.add_argument("--channels", type=int, metavar="1|3", help="a gray image is repeated for 3 (default: its own)")
    group.add_argument("--order", default="rgb", metavar="rgb|bgr", help="of 3 channels (default: %(default)s)")
    group.add_argument(
        "--outputs", nargs="+", default=[], metavar="HEAD=NAME", help="outputs' names (default: as the heads)"
    )
    group.add_argument(
        "--activation",
        default="softmax",
        metavar="softmax|none",
        help="softmax: outputs are logits (of multi-label heads for a sigmoid); none: probabilities "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="HEAD=CLASS,CLASS,...",
        help="heads' classes in the order of the model, where that is not the task's; --oof is in the task's",
    )


def adopt_by_options(options: argparse.Namespace) -> Run:
    """Adopt what a command line names.

    Raises:
        KitError: When it names what does not go together; see `adopt_onnx`.
    """
    from kaggle_kit.export.adopt import adopt_onnx
    from kaggle_kit.folds import Folds
    from kaggle_kit.predictions import Predictions
    from kaggle_kit.runs import EVERYTHING, read_run
    from kaggle_kit.sources import PackedSource
    from kaggle_kit.task import read_task

    if options.like and not options.everything:
        raise SettingError("--like goes with --everything; leave it out, or add that")
    if options.everything and len(options.onnx) != 1:
        raise SettingError(f"--everything is for one model, and --onnx names {len(options.onnx)}; give one")
    return adopt_onnx(
        {EVERYTHING: options.onnx[0]} if options.everything else dict(enumerate(options.onnx)),
        options.out,
        name=options.name,
        task=read_task(options.task),
        data=options.data,
        packed=PackedSource(find_store(options.packed)),
        folds=Folds.load(options.folds),
        oof=Predictions.load(options.oof),
        reading=reading_of(options),
        like=read_run(options.like) if options.like else None,
    )


def find_store(folder: Path) -> Path:
    """Return a folder itself, or the one packed store that lies in it, as in `packed_images` beside a run.

    Raises:
        DataError: Naming the stores, where several lie in it.
    """
    from kaggle_kit.sources.packed import META

    if (folder / META).is_file():
        return folder
    stores = [path.parent for path in sorted(folder.glob(f"[!.]*/{META}"))]
    if len(stores) > 1:
        raise DataError(f"{folder} holds {len(stores)} packed stores; give one of {some_of(map(str, stores), 9)}")
    return stores[0] if stores else folder


def reading_of(options: argparse.Namespace) -> Reading:
    """Return how models read, as a command line says.

    Raises:
        SettingError: Naming the option that does not read.
    """
    from kaggle_kit.export.reading import Reading

    return Reading(
        size=tuple(options.size) if options.size else None,
        layout=options.layout,
        dtype=options.dtype,
        mean=tuple(options.mean),
        std=tuple(options.std),
        channels=options.channels,
        order=options.order,
        outputs=_pairs("--outputs", options.outputs),
        activation=options.activation,
        classes={head: tuple(names.split(",")) for head, names in _pairs("--classes", options.classes).items()},
    )


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Return {head: what is said of it} of texts like HEAD=NAME."""
    pairs = dict(text.partition("=")[::2] for text in texts)
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong or len(pairs) < len(texts):
        raise SettingError(f"{flag} has {(wrong or list(texts))[0]!r}; give HEAD=NAME, each head once")
    return pairs
