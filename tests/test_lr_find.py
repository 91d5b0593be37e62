from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.train.config import OptimConfig
from kaggle_kit.train.lr_find import LrFind, find_lr, read_lr_curve, save_lr_plot, smooth

RATES = np.geomspace(1e-7, 10, 100)
Batch = tuple[torch.Tensor, torch.Tensor]


class Tiny(nn.Module):
    """A backbone with a head, as the network is built, that tells classes of noise with distinct means apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(16, 4)])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.heads[0](self.backbone(values))


def batches_of(*, learnable: bool = True) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 8, generator=generator)
    while True:
        classes = torch.randint(4, (32,), generator=generator)
        values = torch.randn(32, 8, generator=generator)
        yield (values + 2 * centres[classes] if learnable else values), classes


def step_loss(network: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def curve(noise: float, *, seed: int = 0, fall: float = 1.0) -> np.ndarray:
    """Return losses that fall around a rate of 10 ** -2.5 and rise again from 10 ** -0.8."""
    logs = np.log10(RATES)
    losses = 2.3 - fall / (1 + np.exp(-3 * (logs + 2.5))) + np.where(logs > -0.8, np.exp(3 * (logs + 0.8)) - 1, 0)
    return losses + noise * np.random.default_rng(seed).standard_normal(100)


def test_a_suggested_rate_trains_and_the_network_stays_as_it_is() -> None:
    network = Tiny().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = find_lr(network, batches_of(), step_loss, OptimConfig(lr=5.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training and all(parameter.grad is None for parameter in network.parameters())
    assert found.suggestion is not None and 1e-4 < found.suggestion < 1
    assert found.suggestion == found.candidates["valley"] and f"{found.suggestion:.1e}" in found.how
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 100

    def loss_after(lr: float) -> float:
        trained, batches = Tiny(), batches_of()
        optimizer = torch.optim.AdamW(trained.parameters(), lr=lr)
        for _ in range(60):
            loss = step_loss(trained, next(batches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after(found.suggestion) < 0.5 * loss_after(1e-6)


def test_the_test_is_the_same_twice() -> None:
    first, second = (find_lr(Tiny(), batches_of(), step_loss, OptimConfig()) for _ in range(2))
    assert np.array_equal(first.losses, second.losses) and first.suggestion == second.suggestion


def test_layers_rates_count_in_the_test() -> None:
    plain, decayed = (
        find_lr(Tiny(), batches_of(), step_loss, OptimConfig(layer_decay=decay)).losses for decay in (1, 0.1)
    )
    assert plain[0] == decayed[0] and not np.array_equal(plain[:60], decayed[:60])


def test_a_loss_that_explodes_ends_the_test() -> None:
    seen: list[float] = []

    def exploding(network: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(1.0 if len(seen) < 60 else 2.0 ** (len(seen) - 60))
        return step_loss(network, batch) * 0 + seen[-1]

    found = find_lr(Tiny(), batches_of(), exploding, OptimConfig())
    assert 60 < len(found.losses) == len(seen) < 70


def test_a_loss_that_is_no_number_ends_the_test_and_is_cut() -> None:
    seen: list[Batch] = []

    def breaking(network: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return step_loss(network, batch) * (math.nan if len(seen) == 80 else 1)

    found = find_lr(Tiny(), batches_of(), breaking, OptimConfig())
    assert len(seen) == 80 and len(found.losses) == len(found.rates) == 79 and np.isfinite(found.losses).all()


def test_a_loss_that_was_never_a_number_gives_no_rate(tmp_path: Path) -> None:
    found = find_lr(Tiny(), batches_of(), lambda network, batch: step_loss(network, batch) * math.nan, OptimConfig())
    assert found.suggestion is None and "no slope found: the loss was no number, or exploded, after 0 step" in found.how
    save_lr_plot(tmp_path / "lr.png", found)
    assert (tmp_path / "lr.png").stat().st_size > 0


def test_what_cannot_be_learned_gives_no_rate() -> None:
    found = find_lr(Tiny(), batches_of(learnable=False), step_loss, OptimConfig())
    assert found.suggestion is None and found.how.startswith("no slope found: from ")


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_the_suggestion_lies_in_the_descent(noise: float, seed: int) -> None:
    found = read_lr_curve(RATES, curve(noise, seed=seed), num_steps=100)
    assert found.suggestion is not None and -3.5 < math.log10(found.suggestion) < -1.5
    assert -3.5 < math.log10(found.candidates["steepest"]) < -1.5
    assert -3.2 < math.log10(found.candidates["lowest / 10"]) < -1.5


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_gives_no_rate(seed: int) -> None:
    losses = 2.3 + 0.1 * np.random.default_rng(seed).standard_normal(100)
    assert read_lr_curve(RATES, losses, num_steps=100).suggestion is None
    losses[85:] += np.exp(np.arange(15) / 4)
    assert read_lr_curve(RATES, losses, num_steps=100).suggestion is None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (np.full(100, 2.3), r"from 2.300 the smoothed loss falls by 0.000, and less than 0.046 may be chance"),
        (2.3 + np.arange(100) / 50, "lowest at 1.0e-07, near the lowest rate; start lower"),
        (curve(0.5, fall=0.1), "may be chance; take more steps or larger batches"),
        (np.r_[2.3, 2.0, np.full(4, 0.1), np.linspace(3, 30, 94)], "near the lowest rate; start lower than 1.0e-07"),
        (np.full(12, 2.3), r"after 12 step\(s\), at 7.7e-07"),
    ],
)
def test_a_curve_without_descent_says_why_there_is_no_rate(losses: np.ndarray, expected: str) -> None:
    found = read_lr_curve(RATES[: len(losses)], losses, num_steps=100)
    assert found.suggestion is None and not found.candidates and "\n" not in found.how
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(found.how)


def test_smoothing_keeps_constants_and_moves_nothing() -> None:
    assert np.allclose(smooth(np.full(50, 3.0), 3), 3)
    peak = np.zeros(51)
    peak[25] = 1
    assert smooth(peak, 3).argmax() == 25 and np.allclose(smooth(peak, 3), smooth(peak, 3)[::-1])


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"low": 1.0, "high": 0.1}, SettingError, "goes from 1 to 0.1; expected 0 < low < high"),
        ({"low": 0.0}, SettingError, "goes from 0 to 10"),
        ({"num_steps": 5}, SettingError, "has 5 steps; give it at least 20"),
        ({"num_steps": 400}, DataError, "takes 400 batches and there were 30"),
    ],
)
def test_a_range_that_cannot_be_tested_is_refused(
    options: dict[str, float], error: type[Exception], expected: str
) -> None:
    batches = [next(batches_of()) for _ in repeat(None, 30)]
    with pytest.raises(error, match=expected):
        find_lr(Tiny(), batches, step_loss, OptimConfig(), **options)


@pytest.mark.parametrize("noise", [0.05, 5.0])
def test_the_plot_shows_the_curve_with_and_without_a_rate(noise: float, tmp_path: Path) -> None:
    found = read_lr_curve(RATES, curve(noise), num_steps=100)
    assert isinstance(found, LrFind) and (found.suggestion is None) == (noise > 1)
    save_lr_plot(tmp_path / "new" / "lr.png", found)
    image = cv2.imread(str(tmp_path / "new" / "lr.png"))
    red = (image[..., 2] > 150) & (image[..., 1] < 80)
    assert image.shape[:2] == (605, 990) and red.any() == (found.suggestion is not None)
