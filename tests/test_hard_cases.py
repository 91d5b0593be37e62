from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy
from pyarrow import parquet
from test_hidden import KINDS, hide

from kaggle_kit.errors import DataError, RehearsalError
from kaggle_kit.platform.hard_cases import CASES, Injection, changed_answers, find_cases
from kaggle_kit.platform.listing import asked_images, images_of, listings
from kaggle_kit.platform.rehearse import rehearse
from kaggle_kit.platform.wheel import kernels_folder
from kaggle_kit.runs import Run
from kaggle_kit.sources import open_source
from kaggle_kit.submission import expected_rows
from kaggle_kit.tables import read_columns, write_rows
from kaggle_kit.task import Task

SUBMIT = kernels_folder() / "submit"


@pytest.fixture(params=["wide parquet", "parquet of binaries", "parquet of structs", "files", "zip", "npy"])
def hidden(request: pytest.FixtureRequest, wide: Toy, tmp_path: Path) -> tuple[Task, Path]:
    """A hidden test of nine images in one of the formats."""
    make, data = KINDS[request.param], tmp_path / "data"
    if make is None:
        return wide.task, wide.hidden
    data.mkdir()
    task = make(data)
    return task, hide(task, data, tmp_path / "hidden", 9).folder


def inject(name: str, task: Task, hidden: Path, tmp_path: Path) -> tuple[Injection, Path]:
    """Return what a case did to a copy of hard links, as a rehearsal mounts them."""
    mounted = shutil.copytree(hidden, tmp_path / "mounted" / name, copy_function=shutil.os.link)
    (mounted / "solution.csv").unlink()
    (scratch := tmp_path / "outside" / name).mkdir(parents=True)
    return CASES[name].inject(task, mounted, scratch), mounted


@pytest.mark.parametrize("name", CASES)
def test_cases_change_copies_and_never_the_originals(hidden: tuple[Task, Path], tmp_path: Path, name: str) -> None:
    task, folder = hidden
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    injection, mounted = inject(name, task, folder, tmp_path)
    assert bool(injection.said) != bool(injection.skipped)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    changed = {p.relative_to(folder): b for p, b in before.items() if p.name != "solution.csv"} != {
        p.relative_to(mounted): p.read_bytes() for p in mounted.rglob("*") if p.is_file()
    }
    assert changed is not bool(injection.skipped or injection.variables)
    assert injection.touched <= set(asked_images(task, folder).tolist())


@pytest.mark.parametrize(("name", "number"), [("one-row", 1), ("empty-test", 0)])
def test_one_row_and_empty_tests_hold_that_many_images(
    hidden: tuple[Task, Path], tmp_path: Path, name: str, number: int
) -> None:
    task, folder = hidden
    injection, mounted = inject(name, task, folder, tmp_path)
    assert len(asked_images(task, mounted)) == number
    for path in listings(task, mounted):
        about = images_of(task, path)[1]
        assert about is not None and len(set(about.tolist())) == number
    source = open_source(task, "test", mounted)
    assert (len(source), sum(len(chunk.ids) for chunk in source.chunks())) == (number, number)
    if number:
        assert source.ids.tolist() == asked_images(task, mounted).tolist() and source.ids[0] in injection.said


def test_shuffled_rows_hold_the_same_lines(hidden: tuple[Task, Path], tmp_path: Path) -> None:
    task, folder = hidden
    _, mounted = inject("shuffled-rows", task, folder, tmp_path)
    for one, other in zip(listings(task, folder), listings(task, mounted), strict=True):
        before, after = (list(zip(*read_columns(p).values(), strict=True)) for p in (one, other))
        assert sorted(before) == sorted(after)
        assert before != after or (task.images.format == "array" and one.name == "test.csv")
    plain, shuffled = open_source(task, "test", folder), open_source(task, "test", mounted)
    assert sorted(plain.ids) == sorted(shuffled.ids)
    for row, name in enumerate(plain.ids.tolist()):
        (place,) = np.flatnonzero(shuffled.ids == name)
        np.testing.assert_array_equal(plain.read(row), shuffled.read(int(place)))


def test_damaged_shards_and_repeated_ids_are_what_they_are_called(wide: Toy, tmp_path: Path) -> None:
    _, mounted = inject("corrupt-shard", wide.task, wide.hidden, tmp_path)
    source = open_source(wide.task, "test", mounted)
    with pytest.raises(DataError, match="is damaged"):
        list(source.chunks())
    _, mounted = inject("duplicate-id", wide.task, wide.hidden, tmp_path)
    with pytest.raises(DataError, match=r"holds 1 id\(s\) more than once: 'Test_0'"):
        open_source(wide.task, "test", mounted)
    injection, mounted = inject("missing-shard", wide.task, wide.hidden, tmp_path)
    assert injection.said == "test_1.parquet is missing" and len(injection.touched) == 4
    _, mounted = inject("extra-column", wide.task, wide.hidden, tmp_path)
    assert parquet.ParquetFile(mounted / "test_0.parquet").schema_arrow.names[-1] == "source"
    assert list(read_columns(mounted / "sample_submission.csv")) == ["row_id", "target", "Usage"]


def test_a_broken_cuda_is_put_before_the_real_one(wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    injection, _ = inject("provider-fallback", wide.task, wide.hidden, tmp_path)
    first, second = injection.variables["LD_LIBRARY_PATH"].split(":")
    assert second == "/somewhere" and (Path(first) / "libcuda.so.1").is_file()
    assert inject("no-gpu", wide.task, wide.hidden, tmp_path)[0].variables == {"CUDA_VISIBLE_DEVICES": ""}


def test_cases_are_found_by_name() -> None:
    assert [case.name for case in find_cases(["one-row", "no-gpu", "one-row"])] == ["one-row", "no-gpu"]
    assert len(find_cases(["all"])) == len(CASES) == 11
    with pytest.raises(RehearsalError, match="there is no hard case 'empty'; did you mean 'empty-test'"):
        find_cases(["empty"])


def test_changed_answers_are_joined_by_id(wide: Toy, tmp_path: Path) -> None:
    rows = expected_rows(wide.task, wide.hidden).tolist()
    write_rows(tmp_path / "plain.csv", ["row_id", "target"], [[row, 0] for row in rows])
    lines = [[row, int(row.startswith("Test_3"))] for row in reversed(rows[2:])]
    write_rows(tmp_path / "case.csv", ["row_id", "target"], lines)
    paths = (wide.task, tmp_path / "case.csv", tmp_path / "plain.csv")
    assert changed_answers(*paths, frozenset()) == (2, 2, 16)
    assert changed_answers(*paths, frozenset(["Test_3"])) == (2, 0, 16)


# The kit's own kernel

LOSE_MORE: set[str] = set()  # what the kit gives up beside what was broken
ON_WIDE = ("one-row", "empty-test", "extra-column", "shuffled-rows", "missing-shard", "duplicate-id", "corrupt-shard")
ON_FILES = (
    "truncated-image",
    "one-row",
    "empty-test",
    "new-size",
    "missing-shard",
    "duplicate-id",
    "provider-fallback",
)


def rehearse_all(toy: Toy, bundle: Path, work: Path, cases: Sequence[str]) -> None:
    result = rehearse(
        SUBMIT,
        toy.task,
        data=toy.data,
        hidden=toy.hidden,
        bundle=bundle,
        work=work,
        only="hidden",
        inject=cases,
        echo=lambda _: None,
    )
    assert (result.answer, result.failed_cases) == ("Complete", ())
    for one in result.cases:
        assert one.run is not None
        assert one.changed_elsewhere == 0 or one.case in LOSE_MORE, (one.case, one.run.log.read_text())


@pytest.mark.slow
def test_the_kit_s_kernel_ends_hard_cases_of_wide_parquet_in_whole_submissions(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path
) -> None:
    rehearse_all(trained[0], bundle_folder, tmp_path / "work", ON_WIDE)


@pytest.mark.slow
def test_the_kit_s_kernel_ends_hard_cases_of_files_in_whole_submissions(files: Toy, tmp_path: Path) -> None:
    from conftest import random_run

    from kaggle_kit.ensemble import equal_blend
    from kaggle_kit.export.bundle import write_bundle
    from kaggle_kit.folds import make_folds
    from kaggle_kit.labels import read_labels

    shutil.copy(files.data / "images" / "4.jpg", files.data / "images" / "3.jpg")  # training refuses a broken one
    run = random_run(
        files, tmp_path / "run", make_folds(read_labels(files.task, files.data), "stratified", num_folds=2, seed=0)
    )
    write_bundle([run], equal_blend([run.name]), tmp_path / "bundle")
    rehearse_all(files, tmp_path / "bundle", tmp_path / "work", ON_FILES)
