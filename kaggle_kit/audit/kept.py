"""What an earlier audit worked out and this one may keep, because the images are the same: the map, train against test.

Each is written with a key of all that it was made from, and read again only where the key is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kaggle_kit
from kaggle_kit.audit.drift import Drift, Drifted, compare_splits
from kaggle_kit.audit.map2d import Made, MadeFrom, Map, Method, draw_map, how_to_read, method_for
from kaggle_kit.audit.pictures import SPLITS, Images, column_names
from kaggle_kit.files import replacing
from kaggle_kit.settings import fingerprint
from kaggle_kit.tables import rows_of

MAP, DRIFT = "map.parquet", "drift.json"
VERSION = 1  # changes with how either is made
Floats = npt.NDArray[np.float32]


def known_map(
    images: Images, folder: Path, *, embeddings: Floats | None = None, method: Method = "auto", seed: int = 0
) -> Map | None:
    """Return what `draw_map` does, and keep it in map.parquet: read from there where it was made from the same.

    Args:
        images: As for `draw_map`.
        folder: An audit's.
        embeddings: As for `draw_map`.
        method: As for `draw_map`.
        seed: As for `draw_map`.
    """
    path, chosen = folder / MAP, method_for(images, embeddings=embeddings, method=method)
    if chosen is None:
        path.unlink(missing_ok=True)
        return None
    seen = "" if embeddings is None else hashlib.sha256(np.ascontiguousarray(embeddings).tobytes()).hexdigest()
    key = _key(images, ["map", chosen, seed, seen])
    placed = _load_map(path, images, key)
    if placed is None:
        placed = draw_map(images, embeddings=embeddings, method=method, seed=seed)
        assert placed is not None
        _save_map(placed, images, path, key)
    return placed


def known_drift(images: Images, folder: Path, *, seed: int = 0) -> Drift:
    """Return what `compare_splits` does, and keep it in drift.json: read from there where it was made from the same.

    Args:
        images: As for `compare_splits`.
        folder: An audit's.
        seed: As for `compare_splits`.
    """
    path, key = folder / DRIFT, _key(images, ["drift", seed])
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["key"] == key:
            return _as_drift(values["drift"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is of another version: it is made anew
    drift = compare_splits(images, seed=seed)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"key": key, "drift": dataclasses.asdict(drift)}), encoding="utf-8")
    return drift


def _key(images: Images, parts: list[object]) -> str:
    """Return digits that change with what is known of the images; the thumbnails follow from their pixels' hashes."""
    known = hashlib.sha256()
    for name in column_names():
        values = getattr(images, name)
        text = (
            "\0".join(values.tolist()).encode("utf-8", "surrogatepass")
            if values.dtype.kind == "U"
            else values.tobytes()
        )
        known.update(f"{name} {len(text)} ".encode() + text)
    return fingerprint([VERSION, kaggle_kit.__version__, known.hexdigest(), *parts])


def _as_drift(values: dict[str, Any]) -> Drift:
    drifted = tuple(Drifted(**one) for one in values["drifted"])
    suspects = {int(row): float(chance) for row, chance in values["suspects"].items()}
    return Drift(**{**values, "drifted": drifted, "suspects": suspects})


def _load_map(path: Path, images: Images, key: str) -> Map | None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError):
        return None
    meta = table.schema.metadata or {}
    if meta.get(b"key") != key.encode():
        return None
    ids, splits = (np.array(table.column(name).to_pylist(), np.str_) for name in ("id", "split"))
    rows = np.full(len(ids), -1, np.int64)
    for split in SPLITS:
        own = images.rows(split)
        which = np.flatnonzero(splits == split)
        places = rows_of(ids[which], images.id[own])
        rows[which] = np.where(places >= 0, own[places] if len(own) else -1, -1)
    if (rows < 0).any():
        return None
    method: Made = "umap" if meta[b"method"] == b"umap" else "pca"
    made_from: MadeFrom = "embeddings" if meta[b"made_from"] == b"embeddings" else "thumbnails"
    x, y = (np.asarray(table.column(name).to_numpy(), np.float32) for name in ("x", "y"))
    text = how_to_read(method, made_from)
    return Map(rows=rows, x=x, y=y, method=method, made_from=made_from, text=text)


def _save_map(placed: Map, images: Images, path: Path, key: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "id": images.id[placed.rows].tolist(),
        "split": images.split[placed.rows].tolist(),
        "x": placed.x,
        "y": placed.y,
    }
    meta = {"method": placed.method, "made_from": placed.made_from, "key": key}
    with replacing(path) as temporary:
        parquet.write_table(pa.table(columns).replace_schema_metadata(meta), temporary)
