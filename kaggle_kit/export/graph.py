"""What is exported: stored uint8 images in, probabilities out, everything between them inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kaggle_kit.errors import SettingError, did_you_mean
from kaggle_kit.export.tta import check_tta, make_views
from kaggle_kit.train.heads import Derivation
from kaggle_kit.train.model import Network

Columns = Mapping[str, npt.NDArray[np.int64]]

TINY = 1e-30  # below it a sum of probabilities has no logarithm worth dividing


class ExportGraph(nn.Module):
    """Stored uint8 images in, one tensor of probabilities per head out.

    Images are preprocessed once; the network sees them as they are and in each view, and probabilities are averaged.

    Attributes:
        network: What is exported.
        names: The task's heads, in the order of what comes out.
    """

    def __init__(
        self,
        network: Network,
        *,
        columns: Columns | None = None,
        tta: Sequence[str] = (),
        derive_from: str = "",
        derivation: Derivation | None = None,
        temperatures: Mapping[str, float] | None = None,
    ) -> None:
        """Put a network between stored images and probabilities.

        Args:
            network: What is exported.
            columns: {head: (C,) the network's class of each class that comes out}; None: as the network has them.
            tta: Changes of the image, as of `make_views`.
            derive_from: An auxiliary head that the task's heads are summed from; empty: they answer for themselves.
            derivation: With `derive_from`: what `derivation_of` gives.
            temperatures: {head: what its logits are divided by}; those of a derived head are logarithms of its sums.

        Raises:
            SettingError: For changes the network cannot follow, a head it does not have, or one whose classes do not
                exclude each other and therefore cannot be derived, or a temperature that is not above 0.
        """
        super().__init__()
        check_tta(tta, network)
        _check_derivation(network, derive_from)
        _check_temperatures(network, temperatures or {})
        self.network = network
        self.names = network.head_names
        self.derive_from = derive_from
        self.views = make_views(tta)
        self.answers = nn.ModuleList()
        for name in self.names:
            temperature, places = (temperatures or {}).get(name, 1.0), (columns or {}).get(name)
            if derive_from:
                table = _table(network, name, derive_from, derivation)
                self.answers.append(Derived(table if places is None else table[:, places], temperature))
            else:
                many = network.head_kinds[name] == "multilabel"
                self.answers.append(Answer(places, temperature, multilabel=many))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a (B, C) float32 tensor per head from (B, H, W, channels) uint8."""
        pixels = self.network.preprocess(image)
        sums: list[torch.Tensor] = []
        for views in _by_size([view(pixels) for view in self.views]):
            # views of a size are one pass: a graph with each layer once, whose BatchNorm folds into its convolution
            logits = self.network.logits(torch.cat(views), auxiliary=bool(self.derive_from))
            named = zip(self.names, self.answers, strict=True)
            probs = [answer(logits[self.derive_from or name]) for name, answer in named]
            probs = [one.reshape(len(views), -1, one.shape[1]).sum(0) for one in probs] if len(views) > 1 else probs
            sums = [total + one for total, one in zip(sums, probs, strict=True)] if sums else probs
        return tuple(total / len(self.views) for total in sums)


class Answer(nn.Module):
    """A head's logits to its probabilities."""

    places: torch.Tensor | None

    def __init__(self, places: npt.NDArray[np.int64] | None, temperature: float, *, multilabel: bool) -> None:
        super().__init__()
        self.temperature = temperature
        self.multilabel = multilabel
        self.register_buffer("places", None if places is None else torch.from_numpy(np.array(places, np.int64)))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return (B, C) float32 probabilities from (B, own C) logits."""
        logits = _divided(logits, self.temperature)
        probs = logits.sigmoid() if self.multilabel else logits.softmax(dim=1)
        return probs if self.places is None else probs.index_select(1, self.places)


class Derived(nn.Module):
    """An auxiliary head's logits to probabilities that are sums of its own.

    Auxiliary classes that belong to no class are left out of the softmax, which is what dividing by the others' sum
    would come to.
    """

    used: torch.Tensor | None
    table: torch.Tensor

    def __init__(self, table: npt.NDArray[np.float32], temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        used = table.any(axis=1)
        self.register_buffer("used", None if used.all() else torch.from_numpy(np.flatnonzero(used)))
        self.register_buffer("table", torch.from_numpy(table[used]))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return (B, C) float32 probabilities from (B, A) logits."""
        if self.used is not None:
            logits = logits.index_select(1, self.used)
        probs = logits.softmax(dim=1) @ self.table
        if self.temperature == 1:
            return probs
        return _divided(probs.clamp(min=TINY).log(), self.temperature).softmax(dim=1)


def membership(classes: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float32]:
    """Return an (A, C) table of 0 and 1: which class each auxiliary class belongs to.

    Args:
        classes: (A,) class indices; -1: of none.
        num_classes: C.
    """
    return np.asarray(classes[:, None] == np.arange(num_classes), np.float32)


def _by_size(images: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return (B, C, h, w) images put together where their height and width agree."""
    groups: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for one in images:
        groups.setdefault(tuple(one.shape[2:]), []).append(one)
    return list(groups.values())


def _divided(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1 else logits / temperature


def _check_derivation(network: Network, derive_from: str) -> None:
    if not derive_from:
        return
    if derive_from not in network.auxiliary_names:
        known = did_you_mean(derive_from, network.auxiliary_names) or "; it was trained with none"
        raise SettingError(
            f"`derive_from` is {derive_from!r}, which is no auxiliary head of this {network.name!r}{known}; leave it "
            "out, or train with that head under the task's `auxiliary`"
        )
    for name in (derive_from, *network.head_names):
        if network.head_kinds[name] == "multilabel":
            raise SettingError(
                f"`derive_from` is {derive_from!r}, but the classes of head {name!r} do not exclude each other "
                "(multilabel), and cannot be summed; leave it out"
            )


def _table(network: Network, head: str, derive_from: str, derivation: Derivation | None) -> npt.NDArray[np.float32]:
    """Return the (A, C) table by which a head is summed; refuse one that does not fit or is empty."""
    assert derivation is not None
    classes, expected = derivation[head], network.head_classes[derive_from]
    if len(classes) != expected or not (classes >= 0).any():
        found = f"of {len(classes)} classes" if len(classes) != expected else "of none"
        raise SettingError(
            f"head {head!r} would be the sum {found} of {derive_from!r}, which has {expected} classes; "
            "derive it from the labels that the network was trained with"
        )
    return membership(classes, network.head_classes[head])


def _check_temperatures(network: Network, temperatures: Mapping[str, float]) -> None:
    for name, temperature in temperatures.items():
        if name not in network.head_names:
            raise SettingError(
                f"`temperatures` name {name!r}, which is no head{did_you_mean(name, network.head_names)}"
            )
        if not 0 < temperature < math.inf:
            raise SettingError(f"`temperatures.{name}` is {temperature}; expected a number above 0")
