"""What the kernel's side is measured on: real scans as bengaliai-cv19 ships them, and bundles of untrained networks.

Speed does not depend on weights, so nothing is trained. `runtime.py` says how to run it.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

from data import make_shard

from kaggle_kit.ensemble import Blend, Prefix, mean_probs
from kaggle_kit.packing import pack
from kaggle_kit.packing.keys import SourceKey
from kaggle_kit.pixels import Image, encode_png
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import Bundle, Golden, Member, Parity, file_sha256, save_golden, write_manifest
from kaggle_kit.scores import Score
from kaggle_kit.sources import open_source
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, read_task

SIZE = (128, 128)
HEADS = ("consonant_diacritic", "grapheme_root", "vowel_diacritic")
PARITY = Parity(rows=0, max_abs_diff=0.0, decisions_changed=0)
GOLDEN_IMAGES = 16


def make_wide(archives: Path, folder: Path, shards: list[int]) -> Path:
    """Write a competition's test: wide parquet shards of so many images each, and their sample submission."""
    ids = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        path = folder / f"test_image_data_{number}.parquet"
        if not path.is_file():
            make_shard(archives, path, rows, seed=number)
        ids += [f"Train_{number * 1_000_000 + row}" for row in range(rows)]
    if not (folder / "sample_submission.csv").is_file():
        rows_ = ([f"{name}_{head}", 0] for name in ids for head in HEADS)
        write_rows(folder / "sample_submission.csv", ["row_id", "target"], rows_)
    return folder


def make_packed(wide: Path, folder: Path) -> Path:
    """Pack the test images of `make_wide`, beside a sample submission of their own."""
    source = open_source(wide_task(), "test", wide)
    folder.mkdir(parents=True, exist_ok=True)
    pack(source, folder / "store", key=SourceKey(source, "benchmark"), kind="raw")
    if not (folder / "sample_submission.csv").exists():
        os.link(wide / "sample_submission.csv", folder / "sample_submission.csv")
    return folder


def extract_photos(archives: Path, folder: Path, *, times: int) -> list[Path]:
    """Return the photos' files in one folder, each so many times under names of their own."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        with zipfile.ZipFile(archives / "caltech_photos.zip") as opened:
            for name in [name for name in opened.namelist() if name.endswith(".jpg")]:
                first = folder / f"0_{Path(name).name}"
                first.write_bytes(opened.read(name))
                for number in range(1, times):
                    os.link(first, folder / f"{number}_{Path(name).name}")
    return sorted(folder.iterdir())


def wide_task() -> Task:
    """The preset: 137 x 236, three heads."""
    return read_task("bengali")


def packed_task() -> Task:
    """The same, from a packed store."""
    task = wide_task()
    return dataclasses.replace(task, images=dataclasses.replace(task.images, format="packed", test="store"))


def make_bundle(
    folder: Path,
    task: Task,
    names: list[str],
    images: Image,
    *,
    size: tuple[int, int] = SIZE,
    tta: tuple[str, ...] = (),
) -> Bundle:
    """Write a bundle of one untrained network a run, all of which count the same.

    Args:
        folder: The bundle; one that is there is taken as it is.
        task: Its task.
        names: timm's names; a run is named by its place.
        images: (n, H, W, C) uint8 stored images, some of which become golden.
        size: (height, width) that networks see.
        tta: Views inside the graphs.
    """
    from kaggle_kit.runtime.bundle import open_bundle

    if (folder / "manifest.json").is_file():
        return open_bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    golden, members, said = images[:GOLDEN_IMAGES], [], {}
    for number, name in enumerate(names):
        run = f"{name}_{number}"
        file = f"member_{run}.onnx"
        export_untrained(folder / file, task, name, size=size, tta=tta, seed=number)
        members.append(Member(file=file, run=run, fold=0, score=0.5, config_hash="", parity=PARITY, tta=tta))
        said[run] = mean_probs([OnnxSession(folder / file, device="cpu").run(golden)])
    prefixes = tuple(Prefix(score=score_of(0.9 + 0.01 * number)) for number in range(len(names)))
    save_golden(Golden(encoded=tuple(map(encode_png, golden)), fitted=True, images=golden, probs=said), folder)
    bundle = Bundle(
        folder=folder,
        task=task,
        members=tuple(members),
        blend=Blend(runs=tuple(said), prefixes=prefixes),
        priors={head: (1 / one.num_classes,) * one.num_classes for head, one in task.heads.items()},
        oof_score=0.9,
        files={path.name: file_sha256(path) for path in folder.iterdir()},
    )
    write_manifest(bundle)
    return bundle


def export_untrained(
    path: Path, task: Task, name: str, *, size: tuple[int, int], tta: tuple[str, ...] = (), seed: int = 0
) -> None:
    """Export a network with random weights."""
    import torch

    from kaggle_kit.export.graph import ExportGraph
    from kaggle_kit.export.onnx import export_onnx

    torch.manual_seed(seed)
    network = make_network(task, name, size=size)
    export_onnx(ExportGraph(network.eval(), tta=tta), path, shape=(*task.stored_size, task.images.channels))


def make_network(task: Task, name: str, *, size: tuple[int, int]):
    """Return a network with random weights, in torch."""
    from kaggle_kit.train.config import ModelConfig
    from kaggle_kit.train.model import build_network

    return build_network(task.without_auxiliary(), ModelConfig(name=name, input_size=size))


def score_of(total: float) -> Score:
    """Return a score that nobody measured, for what is said of runs that are left out."""
    return Score(total=total, heads=dict.fromkeys(HEADS, total), rows=1)
