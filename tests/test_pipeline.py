"""Images through graphs that pretend, by real threads."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from staged import SHAPE, Session, make_bundle, make_ladder

from kaggle_kit.errors import BundleError, DataError, PredictionError
from kaggle_kit.runtime import feed
from kaggle_kit.runtime.budget import Budget
from kaggle_kit.runtime.levels import Ladder
from kaggle_kit.runtime.pipeline import LostDeviceError, Pipeline, Timings
from kaggle_kit.runtime.results import Batch, Results
from kaggle_kit.sources import Chunk
from kaggle_kit.sources.protocol import split_rows

FILES = ("a0", "a1", "b0", "c0")
PRIORS = {"category": np.full((1, 5), 0.2, np.float32)}


class Still(Session):
    """A graph that pretends in no time, and does to each batch whatever it is told to."""

    def __init__(
        self, do: Callable[[np.ndarray], None] = lambda _images: None, seconds: float = 0.0, **options
    ) -> None:
        super().__init__(lambda: 0.0, 0.0, **options)  # type: ignore[arg-type]
        self.do, self.pause = do, seconds

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.do(images)
        time.sleep(self.pause)
        self.batches.append(len(images))
        share = images[:, 0, 0, 0].astype(np.float32) / 255
        return {"category": np.stack([share, *[(1 - share) / 4] * 4], axis=1)}


class Made:
    """Images that are their row's number, read so many at a time; some are broken, some parts cannot be read."""

    stored = None
    shape = SHAPE

    def __init__(
        self, number: int, *, at_once: int = 7, broken: tuple[int, ...] = (), lost: tuple[int, ...] = ()
    ) -> None:
        self.ids = np.array([f"i{row}" for row in range(number)], np.str_)
        self.at_once, self.broken, self.lost = at_once, broken, lost
        self.read_at: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self) -> list[range]:
        return split_rows(0, len(self), self.at_once)

    def encoded(self, row: int) -> None:
        """These are bare pixels."""

    def describe(self) -> str:
        return "made images"

    def chunks(self, *, start: int = 0, stop: int | None = None, into: object = None) -> Iterator[Chunk]:
        for part in self.parts():
            rows = range(max(part.start, start), min(part.stop, len(self) if stop is None else stop))
            if not len(rows):
                continue
            if set(self.lost) & set(rows):
                raise DataError("shard_1.parquet is damaged (a page is cut); download it again")
            self.read_at.append(rows.start)
            values = np.array(rows, np.uint8)[:, None, None, None]
            named = {f"i{row}": "cut short" for row in rows if row in self.broken}
            yield Chunk(
                start=rows.start,
                ids=self.ids[rows.start : rows.stop],
                images=np.broadcast_to(values, (len(rows), *SHAPE)).copy(),
                sizes=np.full((len(rows), 2), 4, np.int32),
                broken=named,
            )


def go(
    source: Made,
    *devices: dict[str, Still],
    results: Results | None = None,
    end: float = float("inf"),
    tolerant: bool = False,
    batch: int = 8,
    spare: Callable[[], Ladder] | None = None,
    grace_s: float = 2.0,
) -> tuple[Results, Timings, list[str]]:
    """Go through a source on devices of these graphs."""
    bundle, said = make_bundle(), []
    made = [make_ladder(bundle, sessions, time.monotonic, piece=batch) for sessions in devices]
    _, levels, costs, _ = made[0]
    results = results or Results({"category": 5}, source.ids, batch=batch)
    made_pipeline = Pipeline(
        source,  # type: ignore[arg-type]
        results,
        [ladder for ladder, *_ in made],
        Budget(levels, costs, end=end),
        priors=PRIORS,
        tolerant=tolerant,
        say=said.append,
        spare=spare,
        grace_s=grace_s,
    )
    return results, made_pipeline.run(every_s=0.01), said


def graphs(**options) -> dict[str, Still]:
    return {name: Still(**options) for name in FILES}


def shares(results: Results) -> np.ndarray:
    return np.round(results.probs()["category"][:, 0] * 255, 3)


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("at_once", [1, 5, 8, 64])
def test_every_image_is_computed_once_and_keeps_its_place(number: int, at_once: int) -> None:
    source, sessions = Made(number, at_once=at_once), graphs()
    results, timings, _ = go(source, sessions)
    assert (shares(results) == np.arange(number)).all()
    assert results.missing() == []
    assert timings.images == number
    sizes = [8] * (number // 8) + ([number % 8] if number % 8 else [])
    assert sessions["c0"].batches == sizes, "batches do not depend on how images are read"


def test_devices_share_the_images() -> None:
    both = [graphs(seconds=0.002), graphs(seconds=0.002)]
    results, _, _ = go(Made(200), *both)
    assert (shares(results) == np.arange(200)).all()
    assert all(sum(sessions["a0"].batches) > 40 for sessions in both)


def test_what_is_finished_is_not_computed_again() -> None:
    source, sessions = Made(30), graphs()
    results = Results({"category": 5}, source.ids, batch=8)
    results.put(Batch(rows=range(8, 16), num_runs=3), {"category": np.full((8, 5), 0.2, np.float32)})
    go(source, sessions, results=results)
    assert sessions["a0"].batches == [8, 8, 6]
    assert (np.delete(shares(results), range(8, 16)) == np.delete(np.arange(30), range(8, 16))).all()


def test_broken_images_get_the_priors_and_nobody_else() -> None:
    results, _, _ = go(Made(20, broken=(3, 19)), graphs())
    assert results.broken() == {"i3": "cut short", "i19": "cut short"}
    assert (results.probs()["category"][[3, 19]] == np.float32(0.2)).all()
    assert (np.delete(shares(results), [3, 19]) == np.delete(np.arange(20), [3, 19])).all()


def test_a_part_that_cannot_be_read_stops_it_but_for_the_rerun() -> None:
    with pytest.raises(DataError, match="shard_1.parquet is damaged"):
        go(Made(40, lost=(16,)), graphs())
    results, _, said = go(Made(40, lost=(16,)), graphs(), tolerant=True)
    assert list(results.broken()) == [f"i{row}" for row in range(14, 21)]
    assert (np.delete(shares(results), range(14, 21)) == np.delete(np.arange(40), range(14, 21))).all()
    assert said == [
        "WARNING rows 14 to 21 cannot be read: shard_1.parquet is damaged (a page is cut); download it again"
    ]


def spoil(row: int) -> Callable[[np.ndarray], None]:
    def fail(images: np.ndarray) -> None:
        if row in images[:, 0, 0, 0]:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    return fail


def test_a_device_that_is_lost_hands_its_work_on() -> None:
    bad = {name: Still(spoil(0) if name == "b0" else lambda _images: None) for name in FILES}
    slow = graphs(seconds=0.001)
    results, _, said = go(Made(100), bad, slow)
    assert (shares(results) == np.arange(100)).all() or said == []  # the other may have taken the first batch
    assert results.missing() == []


def test_the_cpu_takes_over_from_the_last_device_and_then_nobody() -> None:
    bundle = make_bundle()
    for spare_fails in (False, True):
        bad = {name: Still(spoil(50)) for name in FILES}
        spare = make_ladder(bundle, bad if spare_fails else graphs(), time.monotonic, piece=8)[0]
        if spare_fails:
            with pytest.raises(LostDeviceError, match=r"device 0 is lost \(CUDA failure 700.*; run it again"):
                go(Made(100), bad, spare=lambda spare=spare: spare)
            continue
        results, _, said = go(Made(100), bad, spare=lambda spare=spare: spare)
        assert (shares(results) == np.arange(100)).all()
        assert len(said) == 1
        assert said[0].endswith("the CPU takes over")


def test_nan_stops_it_but_for_the_rerun() -> None:
    class Nan(Still):
        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            probs = super().run(images)
            probs["category"][images[:, 0, 0, 0] == 9] = np.nan
            return probs

    sessions = {name: Nan() for name in FILES}
    with pytest.raises(PredictionError, match="probabilities of 'i9' hold NaN, of 1 image"):
        go(Made(20), sessions)
    results, _, _ = go(Made(20), sessions, tolerant=True)
    assert results.broken() == {"i9": "its probabilities are NaN or infinite"}


def test_time_that_is_over_ends_it_and_a_device_that_hangs_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(images: np.ndarray) -> None:
        if 40 in images[:, 0, 0, 0]:
            release.wait()

    sessions = {name: Still(hang) for name in FILES}
    started = time.monotonic()
    results, _, _ = go(Made(100), sessions, end=started + 0.5, grace_s=0.05)
    assert time.monotonic() - started < 3
    assert results.missing() == [range(40, 100)]
    release.set()
    time.sleep(0.05)
    assert results.missing() == [range(40, 100)], "what comes too late does not change what was written"


def test_what_waits_is_one_part_of_the_source() -> None:
    source = Made(200, at_once=20)
    gate = threading.Event()
    sessions = {name: Still(lambda _images: gate.wait()) for name in FILES}
    thread = threading.Thread(target=go, args=(source, sessions), daemon=True)
    thread.start()
    time.sleep(0.3)
    assert source.read_at <= [0, 20, 40, 60, 80], "buffers, what waits, and the part that is read"
    gate.set()
    thread.join()
    assert source.read_at == list(range(0, 200, 20))


def test_an_error_of_ours_is_raised_as_it_is() -> None:
    class Odd(Made):
        def chunks(self, **_rows) -> Iterator[Chunk]:  # type: ignore[override]
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        go(Odd(5), graphs())


def test_images_of_a_mapped_file_are_brought_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.zeros((50, 64, 64, 1), np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    touched: list[int] = []
    monkeypatch.setattr(feed.np, "array_split", lambda pages, _n: touched.append(len(pages)) or [pages])
    feed._touch(np.asarray(mapped[10:20]))
    feed._touch(np.zeros((10, 64, 64, 1), np.uint8))
    assert touched == [10]


def test_a_pass_over_nothing_says_so() -> None:
    assert go(Made(0), graphs())[1].images == 0
    assert list(itertools.chain(*go(Made(0), graphs())[0].missing())) == []


def test_a_graph_that_does_not_load_on_one_device_is_that_device_s_trouble() -> None:
    def missing(_images: np.ndarray) -> None:
        raise BundleError("member_b.onnx does not load in onnxruntime")

    bad = {name: Still(missing if name == "c0" else lambda _images: None) for name in FILES}
    results, _, _ = go(Made(100), bad, graphs(seconds=0.001))
    assert (shares(results) == np.arange(100)).all()


def test_reading_is_never_made_less_nice_than_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "getpriority", lambda _which, _who: 12)
    monkeypatch.setattr(os, "setpriority", lambda _which, _who, value: asked.append(value))
    feed._be_nice()
    assert asked == [12]

    def refuse(*_arguments: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    feed._be_nice()
