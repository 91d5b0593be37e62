"""A map of the images: what looks alike lies close together."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.components import principal_components, thumbnail_vectors
from kaggle_kit.audit.pictures import Images
from kaggle_kit.errors import SettingError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Method = Literal["auto", "pca", "umap"]
Made = Literal["pca", "umap"]
MadeFrom = Literal["thumbnails", "embeddings"]
MAX_SHOWN = {"pca": 20_000, "umap": 10_000}
FEWEST = {"pca": 3, "umap": 50}
UMAP_COMPONENTS, UMAP_NEIGHBOURS, UMAP_EPOCHS = 32, 15, 200  # its own 500 epochs take twice the time


@dataclass(frozen=True, kw_only=True)
class Map:
    """A place for each of up to 20,000 images.

    Attributes:
        rows: (M,) rows of `Images`, ascending.
        x: (M,) float32, from -1 to 1.
        y: (M,) float32, from -1 to 1.
        method: How it was made.
        made_from: "thumbnails" or "embeddings".
        text: One sentence on how to read it.
    """

    rows: Ints
    x: Floats
    y: Floats
    method: Made
    made_from: MadeFrom
    text: str


def draw_map(images: Images, *, embeddings: Floats | None = None, method: Method = "auto", seed: int = 0) -> Map | None:
    """Place the images on a plane: by UMAP where it is installed, else by their two main directions.

    Args:
        images: All images; at most 20,000 are placed, 10,000 by UMAP, drawn from train and test alike.
        embeddings: (N, D) of a model, rows of NaN where there is none; None: the thumbnails are compared.
        method: `auto`: UMAP where the package is installed; `umap`: that or an error.
        seed: Of what is drawn, and of UMAP.

    Returns:
        The map; None where fewer than 3 images can be read.

    Raises:
        SettingError: When UMAP is asked for and is not installed.
    """
    check_method(method)
    chosen = method_for(images, embeddings=embeddings, method=method)
    if chosen is None:
        return None
    rows = _usable(images, embeddings)
    if len(rows) > MAX_SHOWN[chosen]:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_SHOWN[chosen], replace=False))
    vectors = thumbnail_vectors(images.thumbnails, rows) if embeddings is None else embeddings[rows]
    places = principal_components(vectors, UMAP_COMPONENTS if chosen == "umap" else 2)
    if chosen == "umap":
        places = _umap(places, seed)
    if places.shape[1] < 2:
        places = np.column_stack([places, np.zeros(len(places), np.float32)])
    made_from: MadeFrom = "thumbnails" if embeddings is None else "embeddings"
    x, y = _scaled(places[:, 0]), _scaled(places[:, 1])
    return Map(rows=rows, x=x, y=y, method=chosen, made_from=made_from, text=how_to_read(chosen, made_from))


def method_for(images: Images, *, embeddings: Floats | None = None, method: Method = "auto") -> Made | None:
    """Return how `draw_map` would make the map; None where there are too few images."""
    number = len(_usable(images, embeddings))
    if number < FEWEST["pca"]:
        return None
    return "umap" if method != "pca" and _has_umap() and number >= FEWEST["umap"] else "pca"


def _usable(images: Images, embeddings: Floats | None) -> Ints:
    usable = images.readable if embeddings is None else images.readable & np.isfinite(embeddings).all(axis=1)
    return np.flatnonzero(usable)


def check_method(method: Method) -> None:
    """Refuse UMAP where it is asked for by name and not installed: before hours are spent on images.

    Raises:
        SettingError: As said.
    """
    if method == "umap" and not _has_umap():
        raise SettingError("--map umap needs the package umap-learn; pip install 'kaggle_kit[map]', or take --map pca")


def _has_umap() -> bool:
    return importlib.util.find_spec("umap") is not None


def _umap(vectors: Floats, seed: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Numba, of TensorFlow's absence, of one thread for the sake of the seed
        umap = importlib.import_module("umap")
        made = umap.UMAP(n_neighbors=UMAP_NEIGHBOURS, n_epochs=UMAP_EPOCHS, random_state=seed, n_jobs=1).fit_transform(
            vectors
        )
    return np.nan_to_num(np.asarray(made, np.float32))


def _scaled(values: Floats) -> Floats:
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / max(high - low, 1e-9) * 2 - 1, np.float32)


def how_to_read(method: Made, made_from: MadeFrom) -> str:
    """Return one sentence on how to read a map."""
    what = "small gray pictures" if made_from == "thumbnails" else "a model's view of the images"
    if method == "umap":
        return f"UMAP of {what}: neighbours look alike; distances between far groups, and axes, mean nothing"
    return f"The two directions in which {what} differ most: neighbours may differ in all the others"
