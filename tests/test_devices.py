"""Devices: what is switched on while a fold trains."""

from __future__ import annotations

import pytest
import torch

from kaggle_kit.train.devices import denormals_flushed


def test_denormal_numbers_are_taken_for_zero_in_the_block_alone() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor has no mode that flushes denormal numbers")
    tiny = torch.tensor([1e-30], dtype=torch.float32)
    assert (tiny * 1e-10).item() > 0
    with denormals_flushed():
        assert (tiny * 1e-10).item() == 0
    assert (tiny * 1e-10).item() > 0
