from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kaggle_kit.errors import KitError
from kaggle_kit.runtime.results import DONE, PROBS, Batch, Results

CLASSES = {"root": 3, "vowel": 2}
IDS = np.array([f"image_{number}" for number in range(10)])


def probs_of(rows: range) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows.start)
    return {head: rng.random((len(rows), size)).astype(np.float32) for head, size in CLASSES.items()}


def put(results: Results, rows: range, **told) -> None:
    results.put(Batch(rows=rows, num_runs=told.pop("num_runs", 2), **told), probs_of(rows))


def make(folder: Path | None, *, key: str = "k", batch: int = 4) -> Results:
    return Results(CLASSES, IDS, batch=batch, folder=folder, key=key)


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_put_comes_out_in_the_rows_order(tmp_path: Path, kept: bool) -> None:
    with make(tmp_path / "parts" if kept else None) as results:
        put(results, range(8, 10), num_runs=1, cut=True, broken={"image_9": "cut short"})
        put(results, range(4))
        assert results.missing() == [range(4, 8)]
        put(results, range(4, 8))
        assert results.missing() == []
        assert results.num_runs().tolist() == [2] * 8 + [1] * 2
        assert results.broken() == {"image_9": "cut short"}
        for head, values in results.probs().items():
            expected = np.concatenate([probs_of(rows)[head] for rows in (range(4), range(4, 8), range(8, 10))])
            assert (values == expected).all()


def test_a_later_process_goes_on_with_what_is_finished(tmp_path: Path) -> None:
    with make(tmp_path) as first:
        put(first, range(4, 8), piece=2, broken={"image_5": "empty"})
        before = first.probs()
    with make(tmp_path, batch=64) as second:
        assert second.batches == first.batches
        assert second.batch == 4, "rows are divided as they were"
        assert second.missing() == [range(4), range(8, 10)]
        assert all((second.probs()[head] == before[head]).all() for head in CLASSES)


@pytest.mark.parametrize("change", ["key", "ids", "classes"])
def test_results_of_something_else_are_begun_anew(tmp_path: Path, change: str) -> None:
    with make(tmp_path) as first:
        put(first, range(4))
    ids = IDS[::-1] if change == "ids" else IDS
    classes = {"root": 3} if change == "classes" else CLASSES
    with Results(classes, ids, batch=4, folder=tmp_path, key="other" if change == "key" else "k") as second:
        assert second.missing() == [range(10)]
        assert (tmp_path / PROBS).stat().st_size == 10 * sum(classes.values()) * 4


def test_a_torn_line_and_changed_probabilities_are_computed_again(tmp_path: Path) -> None:
    with make(tmp_path) as first:
        for rows in (range(4), range(4, 8), range(8, 10)):
            put(first, rows)
    lines = (tmp_path / DONE).read_bytes()
    (tmp_path / DONE).write_bytes(lines[:-5])
    with (tmp_path / PROBS).open("r+b") as file:
        file.seek(2)
        file.write(b"\xff")
    with make(tmp_path) as second:
        assert second.missing() == [range(4), range(8, 10)]
        put(second, range(4))
    with make(tmp_path) as third:
        assert third.missing() == [range(8, 10)]


def test_lines_that_are_no_batches_are_passed_over(tmp_path: Path) -> None:
    with make(tmp_path) as first:
        put(first, range(4))
    lines = (tmp_path / DONE).read_bytes()
    (tmp_path / DONE).write_bytes(b"no json\n[1]\n" + lines + b'{"rows": "x"}\n')
    with make(tmp_path) as second:
        assert second.missing() == [range(4, 10)]


def test_two_processes_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    code = f"""
import numpy as np
from pathlib import Path
from kaggle_kit.runtime.results import Results
Results({CLASSES!r}, np.array({IDS.tolist()!r}), batch=4, folder=Path({str(tmp_path)!r}), key="k")
print("open", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(KitError, match="another process is predicting into .*; wait for it, or give another --out"):
            make(tmp_path)
        other.kill()
    make(tmp_path).close()  # a lock ends with its process


def test_a_disk_that_is_too_small_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path)


def test_what_is_left_is_opened_whatever_it_belongs_to(tmp_path: Path) -> None:
    assert Results.left_in(tmp_path / "absent") is None
    with make(tmp_path, key="anything") as first:
        put(first, range(4))
    left = Results.left_in(tmp_path)
    assert left is not None
    with left:
        assert left.missing() == [range(4, 10)]
        assert (left.ids == IDS).all()
    left.remove()
    assert not tmp_path.exists()


def test_threads_may_put_at_once(tmp_path: Path) -> None:
    with make(tmp_path, batch=1) as results:
        threads = [threading.Thread(target=put, args=(results, range(row, row + 1))) for row in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.missing() == []
    with make(tmp_path) as again:
        assert all((again.probs()["root"][row] == probs_of(range(row, row + 1))["root"]).all() for row in range(10))


def test_no_images_need_no_room(tmp_path: Path) -> None:
    with Results(CLASSES, np.zeros(0, np.str_), batch=4, folder=tmp_path) as results:
        assert results.missing() == []
        assert results.probs()["root"].shape == (0, 3)


def test_a_disk_that_fills_up_costs_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with Results(CLASSES, IDS, batch=4, folder=tmp_path, key="k", say=said.append) as results:
        put(results, range(4))
        real = os.write

        def full(handle: int, data: bytes) -> int:
            if handle in results._files.values():
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data)

        monkeypatch.setattr(os, "write", full)
        put(results, range(4, 8))
        put(results, range(8, 10))
        expected = np.concatenate([probs_of(rows)["root"] for rows in (range(4), range(4, 8), range(8, 10))])
        assert (results.probs()["root"] == expected).all()
        assert results.missing() == []
    assert said == [
        "WARNING the disk takes no more (No space left on device); what is finished from here on is lost should this "
        "process be killed"
    ]
    monkeypatch.undo()
    with make(tmp_path) as again:
        assert again.missing() == [range(4, 10)]


def test_batches_that_are_not_good_enough_are_computed_again(tmp_path: Path) -> None:
    with make(tmp_path) as first:
        put(first, range(4), num_runs=1)
        put(first, range(4, 8), num_runs=2)
    with Results(CLASSES, IDS, batch=4, folder=tmp_path, key="k", accept=lambda batch: batch.num_runs > 1) as second:
        assert second.missing() == [range(4), range(8, 10)]


def test_what_is_left_of_another_bundle_is_not_opened(tmp_path: Path) -> None:
    with make(tmp_path, key="bundle1 x") as first:
        put(first, range(4))
        with pytest.raises(KitError, match="another process is predicting"):
            Results.left_in(tmp_path, key_start="bundle1")
    assert Results.left_in(tmp_path, key_start="bundle2") is None
    left = Results.left_in(tmp_path, key_start="bundle1")
    assert left is not None
    left.close()
