"""What computes: one device, or all of a `torchrun`, by Lightning Fabric."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kaggle_kit.errors import SettingError
from kaggle_kit.train.config import TrainConfig

PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
# The first rank packs and checks images while the others wait; the default of 10 to 30 minutes is too short for that.
PATIENCE = datetime.timedelta(hours=6)


def make_fabric(config: TrainConfig) -> Any:
    """Return a launched Fabric on the best device there is, with the precision it can do.

    Under `torchrun` on all its devices, which then share every batch's gradients.

    Raises:
        SettingError: When the device cannot do the precision asked for.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its banner, once a rank
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_ranks)))
    precision = _best_precision() if config.device.precision == "auto" else config.device.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise SettingError("`device.precision` is 'fp16', which needs a GPU; set device.precision=auto")
    fabric = Fabric(
        accelerator="auto",
        devices=num_local,
        num_nodes=num_ranks // num_local,
        strategy=DDPStrategy(find_unused_parameters=bool(config.optim.freeze_epochs), timeout=PATIENCE)
        if num_ranks > 1
        else "auto",
        precision=PRECISIONS[precision],
    )
    fabric.launch()
    return fabric


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Let the processor take denormal numbers for 0 in the block, where it can.

    It takes many times as long for numbers below 1e-38, to which Adam's averages of dead channels sink.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _best_precision() -> str:
    if not torch.cuda.is_available():
        return "fp32"
    # torch.cuda.is_bf16_supported() also says yes where bf16 is only emulated, as on T4.
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
