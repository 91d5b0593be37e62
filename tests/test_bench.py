from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy, write_shard
from handmade import make_bundle

from kaggle_kit.errors import DataError
from kaggle_kit.runtime.bench import bench_bundle, format_bench
from kaggle_kit.runtime.progress import Progress, gpu_memory_gb, memory_line


def quiet(_line: str) -> None:
    pass


def write_test(folder: Path, split: str, number: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (number, 24, 32), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    write_shard(folder / f"{split}_0.parquet", [f"{split}_{row}" for row in range(number)], images)


def test_train_images_serve_where_the_visible_test_is_a_dummy(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    write_test(tmp_path / "data", "test", 3)
    write_test(tmp_path / "data", "train", 40)
    said: list[str] = []
    found = bench_bundle(tmp_path / "bundle", tmp_path / "data", num_images=30, batches=(8, 64), say=said.append)
    assert found.timings.images == 30
    assert said[0].startswith("30 images of 24 x 32 x 1")
    fused = {speed.batch for speed in found.speeds if not speed.run}
    assert fused == {8, 30}
    assert set(found.seconds) == {"a", "b"}
    assert len(format_bench(found)) == 4


def test_few_images_and_no_train_images_serve_too(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", fused=False)
    write_test(tmp_path / "data", "test", 3)
    assert bench_bundle(tmp_path / "bundle", tmp_path / "data", batches=(64,), say=quiet).timings.images == 3


def test_no_images_are_said(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    write_test(tmp_path / "data", "test", 0)
    with pytest.raises(DataError, match="holds no images to measure with"):
        bench_bundle(tmp_path / "bundle", tmp_path / "data", say=quiet)


class Counted:
    total, done, computed = 1000, 0, 0


class TestProgress:
    def test_lines_come_every_15_seconds_and_later_every_minute(self) -> None:
        now, said, counted = [0.0], [], Counted()
        progress = Progress(counted, end=400.0, say=said.append, clock=lambda: now[0])
        for second in range(0, 601):
            now[0], counted.done, counted.computed = float(second), second, second
            progress.tick()
        assert len(said) == 300 // 15 + 300 // 60
        assert said[1].startswith("30 of 1,000 images, 1 images/s, 970 s left, limit in 370 s")

    def test_what_was_finished_earlier_does_not_count_as_speed(self) -> None:
        counted = Counted()
        counted.done, counted.computed = 900, 0
        progress = Progress(counted, say=quiet, clock=lambda: 0.0)
        assert "0 images/s, time left unknown" in progress.line()

    def test_a_notebook_has_a_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[int] = []

        class Bar:
            n = 0

            def __init__(self, **_options: object) -> None:
                pass

            def update(self, by: int) -> None:
                self.n += by
                shown.append(self.n)

            def close(self) -> None:
                shown.append(-1)

        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
        monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))  # type: ignore[arg-type]
        counted = Counted()
        progress = Progress(counted, say=quiet)
        counted.done = 400
        progress.tick()
        counted.done = 1000
        progress.line()
        assert shown == [400, 1000, -1]
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
        assert Progress(counted, say=quiet).line().startswith("1,000 of 1,000 images")


def test_the_memory_of_gpus_is_told_where_nvidia_smi_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretended import pretend_nvidia_smi

    pretend_nvidia_smi(tmp_path / "bin", monkeypatch, "echo '2048, 15360'; echo '1024, 15360'")
    assert gpu_memory_gb() == [(2.0, 15.0), (1.0, 15.0)]
    assert memory_line(on_gpu=True).endswith("GPU 2.0 of 15.0 GB, GPU 1.0 of 15.0 GB")
    pretend_nvidia_smi(tmp_path / "bin", monkeypatch, "exit 9")
    assert gpu_memory_gb() == []


def test_toy_competitions_can_be_measured(trained: tuple[Toy, list], bundle_folder: Path) -> None:
    found = bench_bundle(bundle_folder, trained[0].hidden, num_images=4, batches=(2,), say=quiet)
    assert all(seconds > 0 for seconds in found.seconds.values())
