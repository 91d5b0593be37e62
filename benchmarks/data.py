"""How fast images come in, and how much memory that takes, beside what people use instead.

    python benchmarks/data.py DATA_FOLDER --work DIR [--only wide,packed,photos,packing,growth] [--runs 3]

DATA_FOLDER holds bangla_handwriting.zip and caltech_photos.zip. DIR gets about 9 GB of wide parquet, made once:
scans of handwriting at 137 x 236 on noisy paper, shifted at random, one row group a shard, format 1.0, dictionary
and snappy pages, as bengaliai-cv19 ships them. Every measurement is a process of its own, and those that are
compared take turns; the table gives medians. Peak memory is the process's own (VmHWM), the interpreter included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 137, 236
PIXELS = HEIGHT * WIDTH
SHARD_ROWS = 50_210
SIZES = (2_000, 20_000, SHARD_ROWS)
PHOTO = 160
PASSES = 5


# What is measured: each function runs in a fresh process, and returns figures.


def wide_pandas(path: Path) -> dict[str, float]:
    """Read a shard by pandas and turn it into images."""
    import pandas as pd

    started = time.perf_counter()
    frame = pd.read_parquet(path)
    read = time.perf_counter()
    values = frame.iloc[:, 1 : 1 + PIXELS].to_numpy()
    images = np.ascontiguousarray(values).reshape(-1, HEIGHT, WIDTH)
    done = time.perf_counter()
    return {"seconds": done - started, "read": read - started, "images": len(images), "check": _check(images)}


def wide_pyarrow(path: Path) -> dict[str, float]:
    """Read a shard by pyarrow whole, and turn it into images by its own tensor."""
    from pyarrow import parquet

    started = time.perf_counter()
    table = parquet.read_table(path, columns=[str(i) for i in range(PIXELS)])
    (batch,) = table.combine_chunks().to_batches()
    images = batch.to_tensor().to_numpy().reshape(-1, HEIGHT, WIDTH)
    return {"seconds": time.perf_counter() - started, "images": len(images), "check": _check(images)}


def wide_kit(path: Path) -> dict[str, float]:
    """Read a shard by the kit into one array."""
    import cv2  # noqa: F401  (imported where it is first needed: not part of the reading)
    from pyarrow import parquet  # noqa: F401

    from kaggle_kit.sources import read_images

    started = time.perf_counter()
    source = _wide_source([path])
    opened = time.perf_counter()
    images = read_images(source)[..., 0]
    done = time.perf_counter()
    return {"seconds": done - started, "open": opened - started, "images": len(images), "check": _check(images)}


def wide_chunks(folder: Path) -> dict[str, float]:
    """Go through four shards by the kit, a chunk at a time."""
    started = time.perf_counter()
    source = _wide_source(sorted(folder.glob("four_*.parquet")))
    seen = 0
    for chunk in source.chunks():
        seen += len(chunk.ids)
    return {"seconds": time.perf_counter() - started, "images": seen}


def wide_parts(path: Path) -> dict[str, float]:
    """Time the parts of reading one shard, in one thread: the shares, not the speed."""
    import cv2
    from pyarrow import parquet

    started = time.perf_counter()
    file = parquet.ParquetFile(path)
    places = {name: place for place, name in enumerate(file.schema_arrow.names)}
    columns = [places[str(i)] for i in range(PIXELS)]
    spent = {"footer": time.perf_counter() - started, "decode": 0.0, "tensor": 0.0, "transpose": 0.0}
    out = np.empty((file.metadata.num_rows, PIXELS), np.uint8)
    for start in range(0, PIXELS, 500):
        times = [time.perf_counter()]
        table = file.reader.read_row_group(0, column_indices=columns[start : start + 500], use_threads=True)
        times.append(time.perf_counter())
        (batch,) = table.combine_chunks().to_batches()
        block = batch.to_tensor(row_major=False).to_numpy().T
        times.append(time.perf_counter())
        for row in range(0, block.shape[1], 4096):
            out[row : row + 4096, start : start + 500] = cv2.transpose(block[:, row : row + 4096])
        times.append(time.perf_counter())
        for name, before, after in zip(("decode", "tensor", "transpose"), times, times[1:], strict=False):
            spent[name] += after - before
    return {**spent, "seconds": time.perf_counter() - started, "images": len(out)}


def packing_read(path: Path) -> dict[str, float]:
    """Read all images of a shard by chunks, keeping them."""
    import cv2  # noqa: F401
    from pyarrow import parquet  # noqa: F401

    started = time.perf_counter()
    kept = [chunk.images for chunk in _wide_source([path]).chunks()]
    return {"seconds": time.perf_counter() - started, "images": sum(map(len, kept))}


def packing_pack(path: Path) -> dict[str, float]:
    """Pack a shard: read, hash the file and every image, count values, write."""
    import cv2  # noqa: F401
    from pyarrow import parquet  # noqa: F401

    from kaggle_kit.packing import pack
    from kaggle_kit.packing.keys import SourceKey

    store = (path if path.is_dir() else path.parent) / "store"
    shutil.rmtree(store, ignore_errors=True)
    started = time.perf_counter()
    source = _wide_source(sorted(path.glob("four_*.parquet")) if path.is_dir() else [path])
    packed = pack(source, store, key=SourceKey(source, None))
    return {"seconds": time.perf_counter() - started, "images": len(packed)}


def packed_open(folder: Path) -> dict[str, float]:
    """Open a store five times; the median."""
    from kaggle_kit.sources import PackedSource

    PackedSource(folder)  # imports
    times = []
    for _ in range(5):
        started = time.perf_counter()
        store = PackedSource(folder)
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "images": len(store)}


def packed_sequential(folder: Path) -> dict[str, float]:
    """Copy all images of a store in row order, by chunks."""
    from kaggle_kit.sources import PackedSource

    store = PackedSource(folder)
    started = time.perf_counter()
    total = sum(int(chunk.images.copy()[:, 0, 0, 0].sum()) for chunk in store.chunks())
    return {"seconds": time.perf_counter() - started, "images": len(store), "check": total}


def numpy_sequential(folder: Path) -> dict[str, float]:
    """The same by `np.load(mmap_mode="r")`, 1,000 images at a time."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    started = time.perf_counter()
    total = sum(int(np.array(images[start : start + 1000])[:, 0, 0, 0].sum()) for start in range(0, len(images), 1000))
    return {"seconds": time.perf_counter() - started, "images": len(images), "check": total}


def packed_random(folder: Path) -> dict[str, float]:
    """Take 400 random batches of 64 from a store."""
    from kaggle_kit.sources import PackedSource

    store = PackedSource(folder)
    batches = _random_batches(len(store))
    started = time.perf_counter()
    total = sum(int(store.take(rows)[:, 0, 0, 0].sum()) for rows in batches)
    return {"seconds": time.perf_counter() - started, "images": 400 * 64, "check": total}


def numpy_random(folder: Path) -> dict[str, float]:
    """The same by `np.load(mmap_mode="r")` and indexing."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    batches = _random_batches(len(images))
    started = time.perf_counter()
    total = sum(int(np.asarray(images[rows])[:, 0, 0, 0].sum()) for rows in batches)
    return {"seconds": time.perf_counter() - started, "images": 400 * 64, "check": total}


def packed_workers(folder: Path) -> dict[str, float]:
    """Read a store in four processes at once; what each holds alone (private memory), and maps together (shared)."""
    code = (
        "from pathlib import Path; from kaggle_kit.sources import PackedSource; import time, sys\n"
        f"store = PackedSource(Path({str(folder)!r})); rest = sum(int(c.images.sum()) for c in store.chunks())\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    rollups = [Path(f"/proc/{child.pid}/smaps_rollup").read_text() for child in children]
    for child in children:
        child.communicate("\n")

    def gigabytes(field: str) -> float:
        lines = [line for rollup in rollups for line in rollup.splitlines() if line.startswith(f"{field}:")]
        return sum(int(line.split()[1]) for line in lines) / 1e6 / 4

    private = gigabytes("Private_Clean") + gigabytes("Private_Dirty")
    return {"rss": gigabytes("Rss"), "private": private, "proportional": gigabytes("Pss"), "seconds": 0.0}


def photos_kit(archive: Path) -> dict[str, float]:
    """Read all photos of the zip to 160 x 160 by the kit, five times over."""
    import cv2  # noqa: F401  (as below, not part of the reading)

    from kaggle_kit.sources.encoded import EncodedSource
    from kaggle_kit.sources.files import open_files
    from kaggle_kit.task import Stored

    stored = Stored(height=PHOTO, width=PHOTO, fit="stretch")
    started = time.perf_counter()
    ids = np.array(_photo_names(archive))
    source = EncodedSource(open_files(archive, ids, suffix="", class_folders=False), ids=ids, channels=3, stored=stored)
    seen = sum(len(chunk.images) for _ in range(PASSES) for chunk in source.chunks())
    return {"seconds": time.perf_counter() - started, "images": seen}


def photos_cv2(archive: Path) -> dict[str, float]:
    """cv2.imdecode and resize in a bare loop over as many threads as cores."""
    from concurrent.futures import ThreadPoolExecutor

    import cv2

    cv2.setNumThreads(1)
    started = time.perf_counter()
    names = _photo_names(archive)

    def decode(blob: bytes) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)
        return cv2.cvtColor(cv2.resize(image, (PHOTO, PHOTO), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)

    seen = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, zipfile.ZipFile(archive) as opened:
        for _ in range(PASSES):
            seen += sum(1 for _ in pool.map(decode, [opened.read(name) for name in names]))
    return {"seconds": time.perf_counter() - started, "images": seen}


def photos_torch(archive: Path) -> dict[str, float]:
    """A torch DataLoader over Pillow and torchvision transforms, as many workers as cores."""
    import torch

    loader = torch.utils.data.DataLoader(
        _PillowPhotos(archive), batch_size=64, num_workers=os.cpu_count() or 1, persistent_workers=True
    )
    started = time.perf_counter()
    seen = sum(len(batch) for _ in range(PASSES) for batch in loader)
    return {"seconds": time.perf_counter() - started, "images": seen}


class _PillowPhotos:
    def __init__(self, archive: Path) -> None:
        from torchvision import transforms

        self._archive, self._names = archive, _photo_names(archive)
        self._transform = transforms.Compose([transforms.Resize((PHOTO, PHOTO)), transforms.PILToTensor()])
        self._opened: zipfile.ZipFile | None = None

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Any:
        from PIL import Image

        if self._opened is None:
            self._opened = zipfile.ZipFile(self._archive)
        with self._opened.open(self._names[row]) as file:
            return self._transform(Image.open(file).convert("RGB"))


def _check(images: np.ndarray) -> int:
    return int(images[::97].sum())


def _random_batches(num_rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, num_rows, 64) for _ in range(400)]


def _photo_names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return [name for name in opened.namelist() if name.endswith(".jpg")]


def _wide_source(shards: list[Path]) -> Any:
    from kaggle_kit.sources.wide_parquet import WideParquetSource
    from kaggle_kit.task import Stored, read_task

    images = read_task("bengali").images
    return WideParquetSource(shards, images=images, stored=Stored(height=HEIGHT, width=WIDTH))


# How it is measured.


def measure(
    routes: dict[str, tuple[Callable[[Path], dict[str, float]], Path]], runs: int
) -> dict[str, dict[str, float]]:
    """Return each route's figures, the medians of `runs` rounds in which the routes take turns."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in routes}
    for _ in range(runs):
        for name, (function, path) in routes.items():
            seen[name].append(_in_a_process(function, path))
    for name, rounds in seen.items():
        checks = {one["check"] for one in rounds if "check" in one}
        assert len(checks) < 2, f"{name} read different pixels: {checks}"
    return {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} for name, rounds in seen.items()
    }


def _in_a_process(function: Callable[[Path], dict[str, float]], path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--function", function.__name__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{function.__name__} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _peak_gb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e9


def show(title: str, found: dict[str, dict[str, float]], base: str, *, pixels_gb: float | None = None) -> None:
    """Print a table: seconds, images a second, times as fast as `base`, peak memory."""
    print(f"\n{title}\n")
    memory = " | peak GB | of the pixels" if pixels_gb else ""
    print(f"| route | seconds | images/s | x {base}{memory} |\n|---|---|---|---{'|---|---' if pixels_gb else ''}|")
    for name, one in found.items():
        rate, base_rate = one["images"] / one["seconds"], found[base]["images"] / found[base]["seconds"]
        peak = f" | {one['peak_gb']:.2f} | {one['peak_gb'] / pixels_gb:.2f}" if pixels_gb else ""
        print(f"| {name} | {one['seconds']:.2f} | {rate:,.0f} | {rate / base_rate:.2f}{peak} |")


def bench_wide(work: Path, runs: int) -> None:
    """Wide parquet to images, small and large, and four shards by chunks."""
    for rows in SIZES:
        path = work / f"wide_{rows}.parquet"
        routes = {
            "pandas": (wide_pandas, path),
            "pyarrow to_tensor": (wide_pyarrow, path),
            "kaggle_kit": (wide_kit, path),
        }
        found = measure(routes, runs)
        show(f"Wide parquet, {rows:,} rows", found, "pandas", pixels_gb=rows * PIXELS / 1e9)
        print(
            f"\nOf pandas' seconds {found['pandas']['read']:.2f} are read_parquet; of the kit's "
            f"{found['kaggle_kit']['open']:.2f} opening."
        )
    parts = _in_a_process(wide_parts, work / f"wide_{SHARD_ROWS}.parquet")
    shares = ", ".join(
        f"{name} {parts[name] / parts['seconds']:.0%}" for name in ("footer", "decode", "tensor", "transpose")
    )
    print(f"\nWhere the time goes, one reader, {SHARD_ROWS:,} rows ({parts['seconds']:.1f} s): {shares}")
    four = _in_a_process(wide_chunks, work)
    shard = SHARD_ROWS * PIXELS / 1e9
    print(
        f"\nchunks() over {four['images']:,} rows in four shards: {four['seconds']:.1f} s, "
        f"peak {four['peak_gb']:.2f} GB = {four['peak_gb'] / shard:.2f} shards of {shard:.2f} GB"
    )


def bench_packed(work: Path, runs: int) -> None:
    """A packed store of 200,840 images beside np.load of the same file."""
    store = work / "store"
    packed = _in_a_process(packing_pack, work)
    print(f"\npacked {packed['images']:,} images in {packed['seconds']:.1f} s")
    _in_a_process(numpy_sequential, store)  # bring it to the page cache
    opened = _in_a_process(packed_open, store)
    print(f"\nopening {opened['images']:,} images: {opened['seconds'] * 1000:.0f} ms")
    routes = {"np.load": (numpy_sequential, store), "kaggle_kit": (packed_sequential, store)}
    show("Packed store, in order", measure(routes, runs), "np.load")
    _in_a_process(numpy_sequential, store)  # all of it in the page cache again
    routes = {"np.load": (numpy_random, store), "kaggle_kit": (packed_random, store)}
    show("Packed store, random batches of 64", measure(routes, runs), "np.load")
    workers = _in_a_process(packed_workers, store)
    print(
        f"\nfour processes that read all of it: {workers['rss']:.2f} GB resident each, of it "
        f"{workers['private']:.2f} GB its own; {workers['proportional']:.2f} GB with shared pages divided among them"
    )
    shutil.rmtree(store)


def bench_photos(data: Path, runs: int) -> None:
    """JPEGs of a zip to 160 x 160."""
    archive = data / "caltech_photos.zip"
    routes = {
        "torch + Pillow": (photos_torch, archive),
        "bare cv2": (photos_cv2, archive),
        "kaggle_kit": (photos_kit, archive),
    }
    show("caltech_photos.zip to 160 x 160", measure(routes, runs), "torch + Pillow")


def bench_packing(work: Path, runs: int) -> None:
    """Packing beside reading, and how both grow."""
    path = work / "wide_20000.parquet"
    show(
        "Packing 20,000 rows",
        measure({"reading": (packing_read, path), "packing": (packing_pack, path)}, runs),
        "reading",
    )
    shutil.rmtree(work / "store")


def bench_growth(work: Path, runs: int) -> None:
    """Packing from 2,000 to 200,840 rows."""
    print("\nPacking, by rows\n\n| rows | seconds | ms a 1,000 rows | peak GB |\n|---|---|---|---|")
    for path in [*(work / f"wide_{rows}.parquet" for rows in SIZES), work]:
        found = measure({"packing": (packing_pack, path)}, runs)["packing"]
        each = found["seconds"] / found["images"] * 1e6
        print(f"| {found['images']:,} | {found['seconds']:.2f} | {each:.0f} | {found['peak_gb']:.2f} |")
        shutil.rmtree(work / "store", ignore_errors=True)


# What is measured on.


def make_shards(data: Path, work: Path) -> None:
    """Write the shards that are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    plan = {work / f"wide_{rows}.parquet": rows for rows in SIZES}
    plan |= {work / f"four_{number}.parquet": SHARD_ROWS for number in range(4)}
    for seed, (path, rows) in enumerate(plan.items()):
        if not path.exists():
            print(f"making {path.name}", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, __file__, "--make", str(data), str(path), str(rows), str(seed)], check=True)


def make_shard(data: Path, path: Path, rows: int, seed: int) -> None:
    """Write one shard as bengaliai-cv19 ships them: pandas metadata, a stray index column, one row group."""
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(seed)
    scans = list(_scans(data / "bangla_handwriting.zip"))
    pixels = np.empty((rows, PIXELS), np.uint8)
    for row in range(rows):
        scan = np.roll(scans[rng.integers(len(scans))], rng.integers(-8, 9, 2), (0, 1))
        noisy = scan + rng.integers(-3, 3, scan.shape, dtype=np.int8)
        pixels[row] = np.clip(noisy, 0, 255).astype(np.uint8).ravel()
    columns: dict[str, Any] = {"image_id": [f"Train_{seed * 1_000_000 + row}" for row in range(rows)]}
    columns |= {str(i): pa.array(pixels[:, i]) for i in range(PIXELS)}
    columns["__index_level_0__"] = np.arange(rows)
    fields = [{"name": name, "field_name": name, "metadata": None} for name in columns]
    for field in fields:
        kind = "unicode" if field["name"] == "image_id" else "int64" if str(field["name"]).startswith("__") else "uint8"
        field |= {"pandas_type": kind, "numpy_type": "object" if kind == "unicode" else kind}
    meta = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": fields, "pandas_version": "0.25.3"}
    table = pa.table(columns).replace_schema_metadata({"pandas": json.dumps(meta)})
    temporary = path.with_suffix(".part")
    parquet.write_table(table, temporary, row_group_size=rows, version="1.0", compression="snappy")
    temporary.rename(path)


def _scans(archive: Path) -> Iterator[np.ndarray]:
    """Yield 600 scans on paper of 137 x 236, gray as int16."""
    import cv2

    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith(".png")][:600]
        for name in names:
            image = cv2.imdecode(np.frombuffer(opened.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            alpha = image[..., 3].astype(np.float32) / 255
            gray = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY) * alpha + 253 * (1 - alpha)
            scale = min(110 / gray.shape[0], 200 / gray.shape[1])
            small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            paper = np.full((HEIGHT, WIDTH), 253, np.float32)
            top, left = (HEIGHT - small.shape[0]) // 2, (WIDTH - small.shape[1]) // 2
            paper[top : top + small.shape[0], left : left + small.shape[1]] = np.minimum(small, 253)
            yield paper.astype(np.int16)


def main() -> None:
    """Run the benchmarks asked for, or one measurement in this process."""
    if sys.argv[1:2] == ["--function"]:
        figures = globals()[sys.argv[2]](Path(sys.argv[3]))
        print(json.dumps({**figures, "peak_gb": _peak_gb()}))
        return
    if sys.argv[1:2] == ["--make"]:
        make_shard(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="wide,packed,photos,packing,growth")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    make_shards(options.data, options.work)
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {_versions()}")
    benches = {
        "wide": bench_wide,
        "packed": bench_packed,
        "photos": bench_photos,
        "packing": bench_packing,
        "growth": bench_growth,
    }
    for name in options.only.split(","):
        benches[name](options.data if name == "photos" else options.work, options.runs)


def _versions() -> str:
    from importlib.metadata import version

    names = ("numpy", "pandas", "pyarrow", "opencv-python-headless", "pillow", "torch")
    return ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    main()
