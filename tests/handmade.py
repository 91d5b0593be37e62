"""Bundles of tiny graphs made by hand: whole, fast, and broken at will."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from conftest import HEADS, SIZE, wide_task
from onnx import TensorProto, helper, numpy_helper

from kaggle_kit.ensemble import Blend, Prefix, mean_probs
from kaggle_kit.mixes import Mix
from kaggle_kit.pixels import encode_png
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import (
    FUSED,
    MANIFEST,
    Bundle,
    Fused,
    Golden,
    Member,
    Parity,
    file_sha256,
    open_bundle,
    save_golden,
    write_manifest,
)

Weights = Mapping[str, np.ndarray]  # {head: (pixels, classes)}
RUNS = {"a": 2, "b": 1}
SHARES = (0.7, 0.3)
PARITY = Parity(rows=1, max_abs_diff=0.0, decisions_changed=0)


def random_weights(seed: int, heads: Mapping[str, int] = HEADS) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        head: rng.normal(0, 1e-3, (SIZE[0] * SIZE[1], classes)).astype(np.float32) for head, classes in heads.items()
    }


def save_graph(networks: Sequence[Weights], shares: Sequence[float], path: Path, *, batch: str | int = "batch") -> None:
    """Write the weighted mean of linear networks as one graph."""
    heads = networks[0]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
    ]
    constants = []
    for head in heads:
        parts = []
        for i, (network, share) in enumerate(zip(networks, shares, strict=True)):
            name = f"{head}/{i}"
            constants += [numpy_helper.from_array(network[head], f"{name}/weights")]
            constants += [numpy_helper.from_array(np.array(share, np.float32), f"{name}/share")]
            nodes += [
                helper.make_node("MatMul", ["flat", f"{name}/weights"], [f"{name}/logits"]),
                helper.make_node("Softmax", [f"{name}/logits"], [f"{name}/probs"], axis=1),
                helper.make_node("Mul", [f"{name}/probs", f"{name}/share"], [f"{name}/part"]),
            ]
            parts.append(f"{name}/part")
        nodes.append(helper.make_node("Sum", parts, [head]))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, *SIZE, 1])
    outputs = [
        helper.make_tensor_value_info(head, TensorProto.FLOAT, [batch, weights.shape[1]])
        for head, weights in heads.items()
    ]
    graph = helper.make_graph(nodes, "handmade", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def make_bundle(folder: Path, *, fused: bool = True, num_golden: int = 20, blend: Blend | None = None) -> Bundle:
    """Write a bundle of three members of two runs, with a fused graph of their weighted mean."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_golden, *SIZE, 1), dtype=np.uint8)
    members, networks, shares, probs = [], [], [], {}
    for number, (run, count) in enumerate(RUNS.items()):
        own = [random_weights(10 * number + fold) for fold in range(count)]
        files = [f"member_{run}_fold{fold}.onnx" for fold in range(count)]
        for fold, (network, file) in enumerate(zip(own, files, strict=True)):
            save_graph([network], [1.0], folder / file)
            members.append(Member(file=file, run=run, fold=fold, score=0.5, config_hash="0", parity=PARITY))
        networks += own
        shares += [SHARES[number] / count] * count
        probs[run] = mean_probs([OnnxSession(folder / file, device="cpu").run(images) for file in files])
    if fused:
        save_graph(networks, shares, folder / FUSED)
    save_golden(Golden(encoded=tuple(map(encode_png, images)), fitted=True, images=images, probs=probs), folder)
    last = Prefix(heads={head: Mix(weights=SHARES) for head in HEADS})
    bundle = Bundle(
        folder=folder,
        task=wide_task(),
        members=tuple(members),
        blend=blend or Blend(runs=tuple(RUNS), prefixes=(Prefix(), last)),
        priors={head: (1 / classes,) * classes for head, classes in HEADS.items()},
        oof_score=0.5,
        files={},
        fused=Fused(file=FUSED, parity=PARITY) if fused else None,
    )
    return sign(bundle)


def sign(bundle: Bundle, *, besides: Sequence[str] = ()) -> Bundle:
    """Write the manifest of a bundle as its files are now, but for files that are to lie beside it."""
    names = sorted(path.name for path in bundle.folder.iterdir())
    files = {name: file_sha256(bundle.folder / name) for name in names if name not in (MANIFEST, *besides)}
    write_manifest(dataclasses.replace(bundle, files=files))
    return open_bundle(bundle.folder)
