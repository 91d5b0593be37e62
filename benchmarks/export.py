"""Does an exported member say what torch says, and what do one graph for several and lower precisions bring?

    python benchmarks/export.py members DATA_FOLDER --work WORK_FOLDER
    python benchmarks/export.py parity|fused|precision|bundle --work WORK_FOLDER

`members`: trains six networks from scratch, a few epochs each, on photos (`caltech`, 3 channels) and on handwriting
(`bangla`, 1 channel), both stored at 80 x 80 and resized to 64 x 64 inside the graph, and five of them on `digits`, the
sample at bengaliai-cv19's size (137 x 236, seen at 64 x 112), where 2,000 images are held out. One is trained on photos
and on handwriting for longer as well. What is finished is skipped when the same command is run again, and a training
that was cut off goes on.
`parity`: torch against ONNX Runtime on all held-out photos and handwriting, at batch 1, 7 and 64.
`fused`: two members of photos in one graph against a session each, with and without flipped views, taking turns.
`precision`: file size, CPU time and gate of the members of photos in fp32, fp16 and int8.
`bundle`: the five members of digits to one bundle, and where the seconds go.
The four export what they measure themselves, and take the networks whose training is finished.

WORK_FOLDER/NAME/data, hidden, task.yaml, folds.parquet, packed    the competition
WORK_FOLDER/NAME/runs/NETWORK                                      a run of one fold, with its out-of-fold predictions
WORK_FOLDER/NAME/onnx, bundle                                      what the parts export
"""

from __future__ import annotations

import argparse
from pathlib import Path

from export_members import CONTESTS, NETWORKS, Ground, train_members
from export_tables import print_bundle, print_fused, print_parity, print_precision
from machine import describe_machine

VERSIONS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
PARTS = {
    "parity": (print_parity, "compare torch with ONNX Runtime"),
    "fused": (print_fused, "time one graph against separate ones"),
    "precision": (print_precision, "measure fp32, fp16 and int8"),
    "bundle": (print_bundle, "time a bundle of five members"),
}


def known_names(text: str, known: list[str]) -> list[str]:
    """Return the names of a list with commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; expected some of {','.join(known)}")
    return names


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="PART", dest="part")
    training = parts.add_parser("members", help="train the members")
    training.add_argument("data", type=Path, help="the folder with the archives")
    training.add_argument("--epochs", type=int, help="instead of the contests' own, to try it out")
    training.add_argument(
        "--only", type=lambda text: known_names(text, list(CONTESTS)), default=list(CONTESTS), help="such as bangla"
    )
    measuring = [parts.add_parser(name, help=about) for name, (_, about) in PARTS.items()]
    for part in (training, *measuring):
        part.add_argument("--work", type=Path, required=True, help="a folder to work in; what is trained there is kept")
    for part in measuring:
        part.add_argument(
            "--networks",
            type=lambda text: known_names(text, list(NETWORKS)),
            default=list(NETWORKS),
            help="such as resnet50,vit_tiny (default: all)",
        )
    options = parser.parse_args()
    print(f"{describe_machine(VERSIONS)}\n", flush=True)
    if options.part == "members":
        for name in options.only:
            train_members(Ground(name=name, work=options.work), options.data, epochs=options.epochs)
    else:
        PARTS[options.part][0](options.work, options.networks)


if __name__ == "__main__":
    main()
