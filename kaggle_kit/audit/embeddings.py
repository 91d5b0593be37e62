"""What a trained network makes of every image, just before its heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.pictures import Images
from kaggle_kit.progress import progress_bar
from kaggle_kit.runs import Run
from kaggle_kit.sources import open_source
from kaggle_kit.tables import rows_of

Floats = npt.NDArray[np.float32]
DIMENSIONS = 128  # random directions keep likeness, and 100 MB hold 200,000 images
BATCH = 64


def embed_images(images: Images, run: Run, data: Path, *, seed: int = 0) -> Floats:
    """Return (N, 128) float32, rows of NaN for images that cannot be read: what a run's first fold sees in them.

    Args:
        images: All images.
        run: Trained here, not adopted.
        data: The competition's data folder.
        seed: Of the directions that features of more dimensions are reduced to.

    Raises:
        DataError: When the run has no checkpoint.
    """
    import torch

    from kaggle_kit.train.checkpoint import load_checkpoint

    network = load_checkpoint(run.checkpoint(min(run.folds)))[0].eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    seen: list[torch.Tensor] = []
    network.heads[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = np.full((len(images), DIMENSIONS), np.nan, np.float32)
    directions: Floats | None = None
    with torch.inference_mode(), progress_bar(len(images), "asking the network", unit="image") as bar:
        for split in ("train", "test"):
            rows = images.rows(split)
            if not len(rows):
                continue
            lacking_ok = run.task.images.format == "files"
            source = open_source(run.task, split, data, on_broken="blank", lacking_ok=lacking_ok)
            for chunk in source.chunks():
                at = rows_of(chunk.ids, images.id[rows])
                for start in range(0, len(at), BATCH):
                    seen.clear()
                    network(torch.from_numpy(np.ascontiguousarray(chunk.images[start : start + BATCH])).to(device))
                    features = seen[0].float().cpu().numpy()
                    if directions is None:
                        directions = _directions(features.shape[1], seed)
                    known = at[start : start + BATCH]
                    out[rows[known[known >= 0]]] = (features @ directions)[known >= 0]
                bar.update(len(at))
    out[~images.readable] = np.nan
    return out


def _directions(num_features: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((num_features, DIMENSIONS), np.float32) / np.sqrt(DIMENSIONS), np.float32)
