"""Checkpoints: one safetensors file whose header holds the JSON that rebuilds the network. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kaggle_kit
from kaggle_kit.errors import CheckpointError, SettingError
from kaggle_kit.files import replacing
from kaggle_kit.scores import Score
from kaggle_kit.settings import build, fingerprint, plain
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train.config import TrainConfig, Weights
from kaggle_kit.train.model import Network, build_network

FORMAT = 2
HEADER_KEY = "kaggle_kit"


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Everything needed to rebuild a network but its weights.

    Attributes:
        task: The competition.
        config: How it was trained.
        fold: The fold it was validated on; -1 where it was trained on everything.
        epoch: How many epochs it had seen.
        score: On its validation fold; None where it was trained on everything.
        weights: Which weights these are: the optimizer's own, or an average.
        kit_version: Of the kit that wrote it.
    """

    task: Task
    config: TrainConfig
    fold: int
    epoch: int
    score: Score | None
    weights: Weights = "raw"
    kit_version: str = kaggle_kit.__version__

    @property
    def config_hash(self) -> str:
        """12 hexadecimal digits that change with any training setting."""
        return fingerprint(self.config)


def save_checkpoint(path: Path, network: Network, info: CheckpointInfo) -> None:
    """Write weights and description to one file, atomically.

    Args:
        path: The .safetensors file.
        network: Whose weights are kept.
        info: All that is needed to build the network again, and where its weights come from.
    """
    from safetensors.torch import save_file

    header = {
        "format": FORMAT,
        "kit_version": info.kit_version,
        "task": task_to_plain(info.task),
        "config": plain(info.config),
        "config_hash": info.config_hash,
        "fold": info.fold,
        "epoch": info.epoch,
        "score": plain(info.score),
        "weights": info.weights,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata={HEADER_KEY: json.dumps(header)})


def load_checkpoint(path: Path) -> tuple[Network, CheckpointInfo]:
    """Rebuild a network from its checkpoint, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: When the file is missing, damaged, of another format, or its weights do not fit.
    """
    header, weights = _read(path)
    info = _info(path, header)
    network = build_network(info.task, info.config.model, load_pretrained=False)
    load_weights(network, weights, where=str(path))
    return network.eval(), info


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], CheckpointInfo]:
    """Return a checkpoint's tensors and its description.

    Raises:
        CheckpointError: When the file is missing, damaged or of another format.
    """
    header, weights = _read(path)
    return weights, _info(path, header)


def load_weights(network: Network, weights: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Put tensors into a network.

    Raises:
        CheckpointError: When their names or shapes are not the network's.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} tensor(s) do not fit the network: {wrong[0]!r} has shape {found.get(wrong[0])}, "
            f"expected {expected.get(wrong[0])}; was it written with other settings, or another timm version?"
        )
    network.load_state_dict(weights)


def _info(path: Path, header: Mapping[str, Any]) -> CheckpointInfo:
    try:
        return CheckpointInfo(
            task=task_from_plain(header["task"]),
            config=build(TrainConfig, header["config"]),
            fold=header["fold"],
            epoch=header["epoch"],
            score=None if header["score"] is None else build(Score, header["score"]),
            weights=header["weights"],
            kit_version=header["kit_version"],
        )
    except (KeyError, SettingError) as error:
        raise CheckpointError(
            f"{path}: its header does not read ({error}); was it written by another version?"
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; train the fold first")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text) if text else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); train the fold again") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')}; kaggle_kit {kaggle_kit.__version__} reads {FORMAT}"
        )
    return header, weights
