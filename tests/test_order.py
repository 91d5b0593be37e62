from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.task import Stored
from kaggle_kit.train.augment import Augment
from kaggle_kit.train.data import TrainStream
from kaggle_kit.train.order import ROWS_A_RUN, shuffle_window, shuffled


@pytest.mark.parametrize("num_rows", [1, 511, 512, 513, 5000, 20_000])
@pytest.mark.parametrize("window", [None, 1, 2000, 10**9])
def test_every_order_holds_every_row_once_and_is_its_seeds(num_rows: int, window: int | None) -> None:
    order = shuffled(num_rows, seed=3, epoch=1, window=window)
    assert (np.sort(order) == np.arange(num_rows)).all()
    assert (order == shuffled(num_rows, seed=3, epoch=1, window=window)).all()
    assert num_rows < 2 or (order != shuffled(num_rows, seed=3, epoch=2, window=window)).any()


def test_a_window_reads_few_runs_around_the_same_time() -> None:
    def runs_of_batches(window: int | None) -> float:
        order = shuffled(100_000, seed=0, epoch=0, window=window)
        return float(np.mean([len(set(rows // ROWS_A_RUN)) for rows in order[:99_000].reshape(-1, 1000)]))

    assert runs_of_batches(window=4096) < 40
    assert runs_of_batches(window=None) > 150


def test_a_window_still_mixes_far_rows() -> None:
    order = shuffled(100_000, seed=0, epoch=0, window=4096)
    assert np.ptp(order[:4096]) > 50_000


def test_the_window_follows_memory_and_setting(wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pack_train(wide.task, wide.data, tmp_path / "p")  # 48 images of 768 bytes
    assert shuffle_window(store, None) is None
    assert shuffle_window(store, 7680 / 1e9) == 10
    monkeypatch.setattr("kaggle_kit.train.order.memory_bytes", lambda: 4 * 7680)
    assert shuffle_window(store, None) == 10


@pytest.mark.parametrize("window", [None, 16])
def test_processes_that_train_together_share_each_epochs_rows(wide: Toy, tmp_path: Path, window: int | None) -> None:
    store = pack_train(wide.task, wide.data, tmp_path / "p")
    labels = read_labels(wide.task, wide.data).align(store.ids)
    together = []
    for rank in range(3):
        stream = TrainStream(
            store,
            labels,
            np.arange(48),
            batch_size=4,
            epochs=2,
            seed=1,
            augment=Augment("none", stored=Stored(height=24, width=32), channels=1),
            window=window,
            rank=rank,
            num_ranks=3,
        )
        assert stream.steps_per_epoch == 4
        together += [stream[step].images.numpy() for step in range(4)]
    seen = {image.tobytes() for batch in together for image in batch}
    assert seen == {store.read(row).tobytes() for row in range(48)}
