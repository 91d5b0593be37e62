"""A timm model without its classifier, made at random or from weights that must fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from kaggle_kit.errors import CheckpointError, SettingError
from kaggle_kit.train.config import ModelConfig, Size
from kaggle_kit.train.weights import Tensors, find_weights, read_weights


def make_backbone(config: ModelConfig, channels: int, input_size: Size, *, load_pretrained: bool) -> nn.Module:
    """Make a timm model without classifier, at random or, where the config asks for it, from pretrained weights.

    Args:
        config: The model's settings; pool and dropout are not the backbone's.
        channels: Of the images.
        input_size: (height, width) it will see.
        load_pretrained: False where a checkpoint's weights come next.

    Raises:
        SettingError: When `drop_path` is asked of a model that has no such paths.
        CheckpointError: When pretrained weights are asked for and cannot be had, or do not fit.
    """
    import timm
    from timm.layers import DropPath

    options: dict[str, Any] = {"img_size": input_size} if is_fixed(config.name) else {}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path

    def make(tensors: Tensors | None) -> nn.Module:
        source = {"pretrained_cfg_overlay": {"state_dict": tensors}} if tensors is not None else {}
        backbone = timm.create_model(
            config.name, pretrained=tensors is not None, num_classes=0, in_chans=channels, **source, **options
        )
        assert isinstance(backbone, nn.Module)
        getattr(backbone, "pretrained_cfg", {}).pop("state_dict", None)  # timm keeps a second copy of all weights there
        return backbone

    try:
        if config.pretrained and load_pretrained:
            path = find_weights(config.name, config.weights)
            backbone = load_backbone(make, path, name=config.name)
        else:
            backbone = make(None)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        backbone = nn.Identity()
    if config.drop_path and not any(isinstance(m, DropPath) and m.drop_prob for m in backbone.modules()):
        raise SettingError(
            f"`model.drop_path` is {config.drop_path}, but {config.name!r} has no such paths; set it to 0"
        )
    return backbone


def is_fixed(name: str) -> bool:
    """Return whether a timm model takes images of one size alone, which is set when it is made."""
    import timm

    return bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))


def load_backbone(make: Callable[[Tensors | None], nn.Module], path: Path, *, name: str) -> nn.Module:
    """Make a backbone that starts from a file's weights, all of them.

    timm leaves the classifier out, adapts the first layers to the channels and resizes position embeddings. It is
    silent on tensors that the file lacks; they are an error here.

    Args:
        make: Makes the backbone from tensors, or at random from None; raises what timm raises.
        path: The safetensors file.
        name: The backbone's name, for the error.

    Raises:
        CheckpointError: Naming tensors that do not fit, and their shapes.
    """
    tensors = read_weights(path)
    try:
        with _watching() as lacking:
            backbone = make(dict(tensors))
    except (RuntimeError, ValueError, KeyError) as error:
        expected = make(None).state_dict()  # where this fails too, it is not for the weights
        raise _misfit(path, name, tensors, expected, str(error)) from None
    if lacking:
        raise _misfit(path, name, tensors, {n: v for n, v in backbone.state_dict().items() if n in lacking}, "")
    return backbone


@contextmanager
def _watching() -> Iterator[set[str]]:
    """Collect the names of tensors that modules made in the block did not find in what they were told to load."""
    lacking: set[str] = set()
    handles: dict[nn.Module, Any] = {}

    def report(_module: nn.Module, keys: Any) -> None:
        lacking.update(keys.missing_keys)

    def watch(parent: nn.Module, _name: str, _child: nn.Module | None) -> None:
        if parent not in handles:
            handles[parent] = parent.register_load_state_dict_post_hook(report)  # type: ignore[no-untyped-call]

    watching = nn.modules.module.register_module_module_registration_hook(watch)
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it warns of is an error here, or the classifier
    try:
        yield lacking
    finally:
        logger.setLevel(level)
        watching.remove()
        for handle in handles.values():
            handle.remove()


def _misfit(path: Path, name: str, found: Tensors, expected: dict[str, Any], reason: str) -> CheckpointError:
    """Return the error that names the first tensors which do not fit; `reason` is told where all names do."""
    wrong = {n: tuple(v.shape) for n, v in expected.items() if n not in found or found[n].shape != v.shape}
    wrong = {n: s for n, s in wrong.items() if f" {n}: " in reason or f'"{n}"' in reason} or wrong
    shown = [f"{n}: {tuple(found[n].shape) if n in found else 'none'}, expected {s}" for n, s in wrong.items()]
    detail = f"; first: {'; '.join(shown[:3])}" if wrong else f" ({' '.join(reason.split())[:160]})"
    return CheckpointError(
        f"{path} does not fit {name!r}: {len(wrong)} of its tensors lack or have another shape{detail}; give the "
        "weights of this model"
    )
