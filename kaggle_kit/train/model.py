"""The network: stored uint8 images in, one row of logits per head out. What is trained is what is exported."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from kaggle_kit.errors import CheckpointError, SettingError, did_you_mean
from kaggle_kit.task import Task
from kaggle_kit.train.config import ModelConfig

Logits = dict[str, torch.Tensor]


class Preprocess(nn.Module):
    """Stored uint8 images to what the backbone expects: float, resized to its input size, normalised.

    The antialiased resize to a fixed size is two matrix products, which every inference backend runs; their
    weights come from OpenCV's own resize of identity matrices.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, stored_size: tuple[int, int], input_size: tuple[int, int], *, mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        self._resizes = stored_size != input_size
        self.register_buffer("rows", resize_weights(stored_size[0], input_size[0]), persistent=False)
        self.register_buffer("columns", resize_weights(stored_size[1], input_size[1]).T.contiguous(), persistent=False)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, C, h, w) float32 from (B, H, W, C) uint8."""
        pixels = images.permute(0, 3, 1, 2).float()
        if self._resizes:
            pixels = torch.matmul(torch.matmul(self.rows, pixels), self.columns)  # (h, H) (B, C, H, W) (W, w)
        return (pixels - self.mean) / self.std


class Network(nn.Module):
    """A timm backbone with one linear head per target, preprocessing included."""

    def __init__(
        self, preprocess: Preprocess, backbone: nn.Module, heads: Mapping[str, int], *, dropout: float
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        features = _num_features(backbone, preprocess)
        self.head_names = tuple(heads)
        self.heads = nn.ModuleList([nn.Linear(features, classes) for classes in heads.values()])

    def forward(self, images: torch.Tensor) -> Logits:
        """Return {head: (B, C) logits} from (B, H, W, channels) uint8."""
        features = self.dropout(self.backbone(self.preprocess(images)))
        return {name: head(features) for name, head in zip(self.head_names, self.heads, strict=True)}


def build_network(task: Task, config: ModelConfig, *, load_pretrained: bool = True) -> Network:
    """Make the network for a task.

    Args:
        task: Gives heads, channels and the stored size.
        config: The model's settings.
        load_pretrained: False where a checkpoint's weights come next.

    Raises:
        SettingError: For a name timm does not know.
        CheckpointError: When pretrained weights are asked for and cannot be had.
    """
    input_size = config.input_size or task.stored_size
    backbone = _make_backbone(config, task.images.channels, input_size, config.pretrained and load_pretrained)
    mean, std = _normalisation(backbone, task.images.channels)
    preprocess = Preprocess(task.stored_size, input_size, mean=mean, std=std)
    heads = {name: head.num_classes for name, head in task.heads.items()}
    return Network(preprocess, backbone, heads, dropout=config.dropout)


def resize_weights(before: int, after: int) -> torch.Tensor:
    """Return the (after, before) matrix of a one-dimensional resize: by area when shrinking, else linear."""
    import cv2

    how = cv2.INTER_AREA if after < before else cv2.INTER_LINEAR
    return torch.from_numpy(
        np.ascontiguousarray(cv2.resize(np.eye(before, dtype=np.float32), (before, after), None, 0, 0, how))
    )


def check_model(config: ModelConfig) -> None:
    """Refuse a model name that timm does not know.

    Raises:
        SettingError: With the closest name there is.
    """
    import timm

    if not timm.is_model(config.name.split(".")[0]):
        raise SettingError(
            f"`model.name` is {config.name!r}, which timm {timm.__version__} does not know"
            f"{did_you_mean(config.name, timm.list_models())[:200]}"
        )


def _make_backbone(config: ModelConfig, channels: int, input_size: tuple[int, int], pretrained: bool) -> nn.Module:
    import timm

    check_model(config)
    fixed = getattr(timm.get_pretrained_cfg(config.name), "fixed_input_size", False)
    extra = {"img_size": input_size} if fixed else {}
    try:
        backbone = timm.create_model(config.name, pretrained=pretrained, num_classes=0, in_chans=channels, **extra)
    except (RuntimeError, OSError, ValueError) as error:
        if not pretrained:
            raise SettingError(f"timm cannot make {config.name!r} for input {input_size}: {error}") from None
        raise CheckpointError(
            f"pretrained weights of {config.name!r} cannot be had ({str(error)[:160]}); fetch them once with a "
            "network, or set model.pretrained=false"
        ) from None
    assert isinstance(backbone, nn.Module)
    return backbone


def _normalisation(backbone: nn.Module, channels: int) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation the backbone was pretrained with, averaged where images are gray."""
    cfg = getattr(backbone, "pretrained_cfg", {})
    mean, std = list(cfg.get("mean", (0.5,) * 3)), list(cfg.get("std", (0.25,) * 3))
    if channels == 1:
        return [sum(mean) / len(mean)], [sum(std) / len(std)]
    return mean, std


def _num_features(backbone: nn.Module, preprocess: Preprocess) -> int:
    """Return how many features come out, by asking: timm's `num_features` is wrong for some models."""
    size = (1, preprocess.rows.shape[1], preprocess.columns.shape[0], preprocess.mean.shape[1])
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = backbone(preprocess(torch.zeros(size, dtype=torch.uint8)))
    backbone.train(training)
    return int(features.shape[1])
