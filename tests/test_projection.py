from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Toy, files_task, make_wide, wide_task

from kaggle_kit.errors import DataError, SettingError
from kaggle_kit.platform.projection import Projection, format_projection, project
from kaggle_kit.platform.rehearse import Rehearsal, RehearsedRun, rehearse
from kaggle_kit.platform.wheel import kernels_folder
from kaggle_kit.runs import Run

STAGES = {"open": 1.0, "write priors": 0.5, "load and check": 2.0, "predict": 22.0, "write": 1.0}
REPORT = {
    "images": 1000,
    "computed": 1000,
    "images_cut": 0,
    "runs": ["first", "second"],
    "images_by_runs": {"2": 1000},
    "seconds": STAGES,
    "first_batch_s": 3.0,
    "reading_s": 10.0,
    "waiting_for_images_s": 2.0,
    "providers": ["CPUExecutionProvider"],
}
COSTS = {"format": 1, "kind": "costs", "device": "Tesla T4", "runs": {"first": 0.001, "second": 0.002, "other": 9.0}}


@pytest.fixture
def rehearsed(tmp_path: Path):
    """Return a rehearsal of 30 s, as its report tells it."""

    def make(*, answer: str = "Complete", memory_gb: float = 1.0, **told) -> Rehearsal:
        submission = tmp_path / "submission.csv"
        submission.with_suffix(".report.json").write_text(json.dumps(REPORT | told))
        run = RehearsedRun(
            kind="hidden",
            answer=answer,
            detail="",
            seconds=30.0,
            peak_memory_gb=memory_gb,
            peak_disk_gb=0.0,
            warnings=(),
            log=tmp_path / "kernel.log",
            submission=submission,
        )
        about = {
            "cases": (),
            "isolation": "",
            "read_only": True,
            "cores": 2,
            "warnings": (),
            "notes": (),
            "score": None,
        }
        return Rehearsal(runs=(run,), **about)

    return make


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    (tmp_path / "costs.json").write_text(json.dumps(COSTS))
    return tmp_path / "costs.json"


def test_files_take_their_start_once_and_the_rest_image_by_image(rehearsed, tmp_path: Path) -> None:
    same = project(rehearsed(), files_task(), test=tmp_path)
    assert (same.images, same.seconds_here, same.memory_gb) == (1000, 30.0, 1.0)
    found = project(rehearsed(), files_task(), test=tmp_path, images=10_000)
    # 8 s beside predicting, of which 2 s grow; 2 s until the first image; 20 s for a thousand images
    assert found.seconds_here == pytest.approx(8 + 9 * 2 + 2 + 10 * 20)
    assert found.memory_gb == pytest.approx(1 + 9_000 * (1_000 + 4 * 3 * 2) / 2**30)
    assert found.groups is None


def test_row_groups_are_read_whole_and_held_twice(rehearsed, tmp_path: Path) -> None:
    toy = make_wide(tmp_path / "toy")  # a test of two shards, of 5 and 4 images
    told = {"images": 9, "computed": 9, "images_by_runs": {"2": 9}}
    task = replace(wide_task(), images=replace(wide_task().images, train="none_*.parquet"))
    found = project(rehearsed(**told), task, test=toy.hidden, data=toy.data, images=90_000)
    assert found.groups == (5, 50_000)
    pixels = 24 * 32
    assert found.memory_gb == pytest.approx(1 + (2.3 * pixels * 49_995 + 1_000 * 89_991) / 2**30)
    # reading costs its columns as much as 5,000 rows: 11 and 9 times as much as it did for 5 and for 4 images
    first, second = (10 * rows / 10_009 for rows in (55_000, 45_000))
    busy = 22 - 2 - 0.2 * 8
    computing = busy * 10_000
    beside = 8 + 9_999 * 2
    assert found.seconds_here == pytest.approx(beside + first + computing + 0.2 * second, rel=1e-3)


def test_row_groups_grow_no_further_than_those_of_train(rehearsed, tmp_path: Path) -> None:
    toy = make_wide(tmp_path / "toy")  # train's shards hold 16 images each
    found = project(rehearsed(), wide_task(), test=toy.hidden, data=toy.data, images=900)
    assert found.groups == (5, 16)
    assert "in row groups of 16 in place of 5" in format_projection(found)[0]


def test_reading_may_be_the_limit(rehearsed, tmp_path: Path) -> None:
    toy = make_wide(tmp_path / "toy")
    told = {"images": 9, "computed": 9, "images_by_runs": {"2": 9}, "reading_s": 20.0, "waiting_for_images_s": 20.0}
    found = project(rehearsed(**told), wide_task(), test=toy.hidden, images=18)
    computing = 18 * 2 / 9
    in_the_end = 8 * 2 / 9
    assert found.seconds_here == pytest.approx(8 + 2 + 20 + in_the_end + 0.2 * (computing - in_the_end), abs=0.1)


def test_run_time_there_comes_from_costs_made_there(rehearsed, costs: Path, tmp_path: Path) -> None:
    found = project(rehearsed(), files_task(), test=tmp_path, images=10_000, costs=costs)
    assert found.seconds_there == pytest.approx(8 + 9 * 2 + 10 * 10 + 10_000 * 0.003)
    assert found.device == "Tesla T4"
    assert format_projection(found)[2] == "  on Tesla T4: 156 s, times 2 for safety 312 s, of 540 minutes: fits"


def test_nothing_is_said_of_an_accelerator_nobody_measured(rehearsed, tmp_path: Path) -> None:
    found = project(rehearsed(), files_task(), test=tmp_path, images=10_000)
    assert found.verdict == "unknown there"
    assert format_projection(found) == [
        "projected from 1,000 to 10,000 images:",
        "  here: 228 s, at most 1.0 GB of 30 GB",
        "  on the accelerator: unknown there; measure the bundle there (kernels/bench) and give --costs",
    ]


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(None, "unknown there"), (50, "fits"), (51, "fits without the safety factor"),
                             (100, "fits without the safety factor"), (101, "does not fit")]
)  # fmt: skip
def test_the_limit_is_kept_with_the_safety_factor(seconds: float | None, verdict: str) -> None:
    found = Projection(rehearsed=1, images=1, seconds_there=seconds, device="T4", limit_s=100, limit_gb=1)
    assert found.verdict == verdict
    assert verdict in format_projection(found)[-1]


def test_memory_is_compared_with_the_limit(rehearsed, tmp_path: Path) -> None:
    found = project(rehearsed(memory_gb=29.9), files_task(), test=tmp_path, images=1_000_000)
    assert not found.memory_fits
    assert "at most 30.9 GB of 30 GB, TOO MUCH" in format_projection(found)[1]
    unknown = project(rehearsed(memory_gb=0.0), files_task(), test=tmp_path, images=1_000_000)
    assert unknown.memory_fits and "memory unknown" in format_projection(unknown)[1]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"answer": "Notebook Timeout"}, "the rehearsal ended with 'Notebook Timeout'"),
        ({"unfinished": "killed"}, r"the submission is unfinished \(killed\)"),
        ({"images": 0, "computed": 0}, "no image was rehearsed"),
        ({"computed": 800}, "only 800 of 1,000 images were computed in one go"),
        ({"images_by_runs": {"2": 900, "1": 100}}, "time was short, .* rehearse with a longer --time-limit"),
        ({"images_cut": 3}, "time was short"),
    ],
)
def test_what_stages_do_not_tell_is_unknown(rehearsed, tmp_path: Path, told: dict, why: str) -> None:
    found = project(rehearsed(**told), files_task(), test=tmp_path, images=10_000)
    assert (found.seconds_here, found.memory_gb, found.seconds_there) == (None, None, None)
    (line,) = format_projection(found)
    assert re.search(why, line)


def test_a_kernel_without_a_report_tells_nothing(rehearsed, tmp_path: Path) -> None:
    rehearsal = rehearsed()
    (tmp_path / "submission.report.json").unlink()
    found = project(rehearsal, files_task(), test=tmp_path, images=10_000)
    assert "the kernel wrote no report of its stages" in found.unknown


def test_slips_are_told(rehearsed, costs: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="a projection to 0 images; give at least 1"):
        project(rehearsed(), files_task(), test=tmp_path, images=0)
    costs.write_text(json.dumps(COSTS | {"runs": {"first": 1.0}}))
    with pytest.raises(SettingError, match="does not say what 1 of 2 runs take: 'second'"):
        project(rehearsed(), files_task(), test=tmp_path, costs=costs)
    with pytest.raises(DataError, match="no file in .* matches"):
        project(rehearsed(), wide_task(), test=tmp_path)


def test_a_rehearsal_projected_to_its_own_size_is_what_was_measured(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path
) -> None:
    toy = trained[0]
    result = rehearse(
        kernels_folder() / "submit",
        toy.task,
        data=toy.data,
        work=tmp_path / "work",
        hidden=toy.hidden,
        bundle=bundle_folder,
        only="hidden",
        echo=lambda _line: None,
    )
    found = project(result, toy.task, test=toy.hidden, data=toy.data)
    assert (found.unknown, found.images, found.groups) == ("", 9, (5, 5))
    assert found.seconds_here == pytest.approx(result.seconds, rel=0.2)
    assert found.memory_gb == pytest.approx(result.peak_memory_gb)
