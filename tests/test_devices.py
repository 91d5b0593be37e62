"""Devices: what a launched Fabric leaves switched on."""

from __future__ import annotations

import pytest
import torch

from kaggle_kit.train.config import TrainConfig
from kaggle_kit.train.devices import make_fabric


def test_denormal_numbers_are_taken_for_zero_while_training() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor has no mode that flushes denormal numbers")
    tiny = torch.tensor([1e-30], dtype=torch.float32)
    assert (tiny * 1e-10).item() > 0
    make_fabric(TrainConfig())
    assert (tiny * 1e-10).item() == 0
