"""What an audit knows of every image: one row an image, train first, then test, in the sources' order."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.findings import Split
from kaggle_kit.audit.measure import THUMBNAIL
from kaggle_kit.errors import DataError
from kaggle_kit.files import replacing
from kaggle_kit.tables import Text

FORMAT = b"2"
FILE, THUMBNAILS = "images.parquet", "thumbnails.npy"
SPLITS: tuple[Split, ...] = get_args(Split)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Images:
    """Properties of all images of a competition; each attribute but `thumbnails` is a column of images.parquet.

    Attributes:
        id: (N,) image ids; unique within a split.
        split: (N,) "train" or "test".
        broken: (N,) why the image cannot be read; empty where it can. All else of a broken image is 0 or empty, but
            for what its header still says.
        absent: (N,) True where the label file or test list names the image and there is none.
        height: (N,) pixels as shown, before any stored size.
        width: (N,) pixels as shown, before any stored size.
        mode: (N,) as Pillow names it: "RGB", "L", "CMYK", "RGBA", "LA", "P", "I;16", "RGB;16"; of bare pixels "L" or
            "RGB".
        file_format: (N,) "jpeg", "png", ...; of bare pixels "pixels".
        frames: (N,) how many an animation has, or pages of a TIFF; else 1.
        num_bytes: (N,) the encoded image's size; of bare pixels 0.
        gray: (N,) True where the image shows no colour, whatever its mode.
        brightness: (N,) mean gray, 0 to 1.
        contrast: (N,) standard deviation of gray, 0 to 0.5.
        sharpness: (N,) the Laplacian's variance over the gray's, at 256 pixels a side at most: less in blurred images.
        content: (N,) share of the pixels that differ from the background, which is the border's median.
        colourfulness: (N,) mean difference between the largest and the smallest channel, 0 to 1.
        pixel_hash: (N,) 32 hexadecimal digits, equal where all decoded pixels are; empty for broken images.
        thumbnails: (N, 48, 48) uint8 gray, stretched, memory-mapped from thumbnails.npy; zeros for broken images.
    """

    id: Text
    split: Text
    broken: Text
    absent: Bools
    height: Ints
    width: Ints
    mode: Text
    file_format: Text
    frames: Ints
    num_bytes: Ints
    gray: Bools
    brightness: Floats
    contrast: Floats
    sharpness: Floats
    content: Floats
    colourfulness: Floats
    pixel_hash: Text
    thumbnails: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.id)

    @property
    def readable(self) -> Bools:
        """(N,) True where the image was decoded."""
        return np.asarray(self.broken == "")

    def rows(self, split: Split) -> Ints:
        """Return the rows of a split: consecutive ones."""
        return np.flatnonzero(self.split == split)


def column_names() -> list[str]:
    """Return the names of the columns of images.parquet."""
    return [field.name for field in fields(Images) if field.name != "thumbnails"]


def save_images(images: Images, path: Path, *, key: str) -> None:
    """Write all columns as parquet, atomically.

    Args:
        images: What is known.
        path: images.parquet; thumbnails.npy lies beside it already.
        key: What the images are known by.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: getattr(images, name) for name in column_names()}
    arrays = {n: pa.array(v.tolist(), pa.string()) if v.dtype.kind == "U" else pa.array(v) for n, v in columns.items()}
    meta = {"kaggle_kit_images": FORMAT, "key": key}
    with replacing(path) as temporary:
        parquet.write_table(pa.table(arrays).replace_schema_metadata(meta), temporary)


def load_images(folder: Path, *, key: str | None = None) -> Images | None:
    """Read what `save_images` wrote into a folder.

    Args:
        folder: An audit's.
        key: What the images must be known by; None: whatever is there.

    Returns:
        The images; None where there are none, those of another version of the kit, or with another key.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(folder / FILE)
        thumbnails = map_thumbnails(folder / THUMBNAILS)
    except (pa.ArrowException, OSError, ValueError):
        return None
    meta = table.schema.metadata or {}
    if meta.get(b"kaggle_kit_images") != FORMAT or (key is not None and meta.get(b"key") != key.encode()):
        return None
    if table.num_rows != len(thumbnails) or set(table.column_names) != set(column_names()):
        return None
    columns = {name: _as_array(table.column(name)) for name in column_names()}
    return Images(**columns, thumbnails=thumbnails)


def read_images(folder: Path) -> Images:
    """Read the images of an audit.

    Raises:
        DataError: When there are none.
    """
    images = load_images(folder)
    if images is None:
        raise DataError(f"{folder} holds no images.parquet of this version of the kit; run `kaggle-kit audit` again")
    return images


def new_thumbnails(path: Path, num_images: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Return (N, 48, 48) uint8 zeros in a new file, to be filled."""
    return np.lib.format.open_memmap(path, "w+", np.uint8, (num_images, THUMBNAIL, THUMBNAIL))


def map_thumbnails(path: Path) -> npt.NDArray[np.uint8]:
    """Return the (N, 48, 48) uint8 that are in a file, read-only.

    Raises:
        ValueError: When the file holds something else.
    """
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.dtype != np.uint8 or found.shape[1:] != (THUMBNAIL, THUMBNAIL):
        raise ValueError(f"{path} holds {found.dtype} {found.shape}")
    return np.asarray(found)


def _as_array(column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), np.str_)
    return np.asarray(column.to_numpy())
