"""The averages of one training's weights that its settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from kaggle_kit.train.averaging import Ema, Swa, recompute_batch_norm
from kaggle_kit.train.config import TrainConfig, Weights
from kaggle_kit.train.model import Network
from kaggle_kit.train.optim import first_swa_epoch


class Averages:
    """EMA, updated after every step, and SWA, after every epoch of the training's last part."""

    def __init__(self, network: Network, config: TrainConfig) -> None:
        """Average nothing yet.

        Args:
            network: Whose weights are averaged, on its device.
            config: Which averages.
        """
        self._network = network
        self._device = next(network.parameters()).device
        self._ema = Ema(network, decay=config.average.ema) if config.average.ema else None
        self._first_swa_epoch = first_swa_epoch(config, epochs=config.epochs)
        self._swa = Swa(network) if self._first_swa_epoch is not None else None

    def networks(self) -> list[Network]:
        """Return the averaged networks, whether they hold an average yet or not."""
        return [_network(average) for average in (self._ema, self._swa) if average is not None]

    def running(self) -> list[tuple[Weights, Network]]:
        """Return the averages worth scoring after an epoch: SWA waits for BatchNorm statistics of its own."""
        return [("ema", _network(self._ema))] if self._ema is not None else []

    def end_step(self) -> None:
        """Take a step's weights in."""
        if self._ema is not None:
            self._ema.update(self._network)

    def end_epoch(self, epoch: int) -> None:
        """Take an epoch's weights in; epochs count from 1."""
        if self._swa is not None and self._first_swa_epoch is not None and epoch > self._first_swa_epoch:
            self._swa.update(self._network)

    def finish(self, images: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Give each average BatchNorm statistics of its own.

        Args:
            images: Gives the train images anew, in batches on the networks' device.
        """
        for _, network in self.all():
            recompute_batch_norm(network, images(), device=self._device)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from."""
        return {name: average.state_dict() for name, average in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved averages."""
        for name, average in self._parts().items():
            average.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {name: part for name, part in (("ema", self._ema), ("swa", self._swa)) if part is not None}

    def all(self) -> list[tuple[Weights, Network]]:
        """Return the averages that hold any weights yet."""
        averages = self.running()
        if self._swa is not None and self._swa.num_updates > 0:
            averages.append(("swa", _network(self._swa)))
        return averages


def _network(average: Ema | Swa) -> Network:
    assert isinstance(average.module, Network)
    return average.module
