"""A network's probabilities of stored images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.train.data import Store
from kaggle_kit.train.model import Network

Ints = npt.NDArray[np.int64]
EVAL_BATCH = 128


def predict_rows(network: Network, source: Store, rows: Ints) -> Probs:
    """Return {head: (rows, C) float32 probabilities} of these rows, in this order.

    Args:
        network: Left in evaluation mode, where it lies.
        source: The images.
        rows: Which ones; at least one.
    """
    size = EVAL_BATCH
    while True:
        try:
            return predict_batches(network, read_ahead(source, rows, size=size))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def read_ahead(source: Store, rows: Ints, *, size: int = EVAL_BATCH) -> Iterator[Image]:
    """Yield batches of `size` of these rows' images; one is read while another is used."""
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(source.take, batches[0])
        for batch in batches[1:]:
            images, coming = coming.result(), reader.submit(source.take, batch)
            yield images
        yield coming.result()


@torch.inference_mode()
def predict_batches(network: Network, batches: Iterable[Image]) -> Probs:
    """Return {head: (N, C) float32 probabilities} of batches of (B, H, W, channels) uint8 stored images, in order."""
    device = next(network.parameters()).device
    network.eval()
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for images in batches:
        for name, logits in network(torch.from_numpy(images).to(device)).items():
            probs = logits.sigmoid() if network.head_kinds[name] == "multilabel" else logits.softmax(dim=1)
            parts.setdefault(name, []).append(probs.cpu().numpy())
    return {name: np.concatenate(part) for name, part in parts.items()}


def predict_together(fabric: Any, network: Network, source: Store, rows: Ints) -> Probs:
    """Return what `predict_rows` does, each rank having computed its share.

    Args:
        fabric: Launched; of one rank or several.
        network: The same on every rank.
        source: The images.
        rows: Which ones; the same on every rank.
    """
    if fabric.world_size == 1:
        return predict_rows(network, source, rows)
    share = -(-len(rows) // fabric.world_size)
    places = np.arange(fabric.global_rank * share, (fabric.global_rank + 1) * share) % len(rows)
    own = predict_rows(network, source, rows[places])
    gathered = {name: _gathered(fabric, torch.from_numpy(probs)) for name, probs in own.items()}
    # shares follow each other in the order of the rows; the last ones begin again from the first row
    return {name: probs[: len(rows)] for name, probs in gathered.items()}


def _gathered(fabric: Any, own: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return all ranks' (share, C) tensors one after the other, on every rank."""
    parts = [torch.empty_like(own, device=fabric.device) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, own.to(fabric.device))
    return np.asarray(torch.cat(parts).cpu().numpy())
