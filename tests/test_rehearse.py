from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE, Toy, write_shard
from small_kernels import START, write_kernel

from kaggle_kit.errors import BundleError, DataError, KitError, RehearsalError
from kaggle_kit.platform import rehearse as module
from kaggle_kit.platform.answers import solution_notes
from kaggle_kit.platform.rehearse import Rehearsal, rehearse
from kaggle_kit.platform.wheel import build_wheel, kernels_folder
from kaggle_kit.runs import Run
from kaggle_kit.tables import write_rows

SUBMIT = kernels_folder() / "submit"


@pytest.fixture
def go(trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path):
    """Rehearse a kernel, given its folder or its code, on the hidden test alone."""

    def run(kernel: Path | str, **options) -> Rehearsal:
        toy, _ = trained
        if isinstance(kernel, str):
            kernel = write_kernel(tmp_path / "kernel", kernel)
        options = {
            "data": toy.data,
            "hidden": toy.hidden,
            "bundle": bundle_folder,
            "only": "hidden",
            "echo": lambda _: None,
        } | options
        return rehearse(kernel, toy.task, work=tmp_path / "work", **options)

    return run


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hidden test of 30,000 images; read-only."""
    folder = tmp_path_factory.mktemp("larger") / "hidden"
    folder.mkdir()
    names = [f"Test_{i}" for i in range(30_000)]
    images = np.random.default_rng(0).integers(0, 256, (30_000, *SIZE), np.uint8)
    for shard in (0, 1):
        write_shard(folder / f"test_{shard}.parquet", names[shard::2], images[shard::2])
    lines = [[f"{name}_{head}", 0] for name in names for head in ("vowel", "root")]
    write_rows(folder / "sample_submission.csv", ["row_id", "target"], lines)
    return folder


def test_the_submit_kernel_completes_on_both_tests_from_the_wheel_and_is_scored(go) -> None:
    result = go(SUBMIT, only=None)
    assert (result.answer, result.detail, result.would_fail) == ("Complete", "", False), result.log.read_text()
    assert [(run.kind, run.answer) for run in result.runs] == [("visible", "Complete"), ("hidden", "Complete")]
    assert [len(run.submission.read_text().splitlines()) for run in result.runs] == [5, 19]
    assert result.score is not None and result.score.all.rows == 9
    assert "kaggle_kit from" in result.log.read_text()
    assert all(0.05 < run.peak_memory_gb < 2 and 0 < run.peak_disk_gb < 0.1 for run in result.runs)
    assert result.warnings == ()


def test_a_second_rehearsal_replaces_the_first_and_leaves_the_originals(go, trained: tuple[Toy, list[Run]]) -> None:
    toy, _ = trained
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in toy.data.rglob("*") if path.is_file()}
    for name in ("first", "second"):
        assert go(START + f"write(rows); (root / 'working' / '{name}').touch()").answer == "Complete"
    result = go(START + "write(rows); print(sorted(os.listdir('.')))")
    assert result.log.read_text().strip() == "['submission.csv']"
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in toy.data.rglob("*") if p.is_file()} == before


def test_a_failure_on_the_visible_test_ends_it(go) -> None:
    result = go("raise ValueError('not even here')", only=None)
    assert [run.kind for run in result.runs] == ["visible"] and result.would_fail
    assert result.detail == "in the visible run: ValueError: not even here"


def test_a_kernel_that_only_the_rerun_breaks_is_told_so(go) -> None:
    result = go(START + "write(rows)\nif len(rows) > 5: raise ValueError('more than I ever saw')", only=None)
    assert [run.answer for run in result.runs] == ["Complete", "Notebook Threw Exception"]
    assert result.detail == "in the hidden run: ValueError: more than I ever saw"


def test_of_the_visible_run_nothing_is_scored(go) -> None:
    result = go(START + "write(rows if rerun else [['nothing']])", only=None)
    assert result.answer == "Complete"
    assert any("visible run: what it wrote would not be scored" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("interactive", ["Interactive", None]), ("visible", ["Batch", None]), ("hidden", ["Batch", "1"])],
)
def test_variables_are_the_image_s_and_no_others(go, kind: str, expected: list[str | None]) -> None:
    code = START + (
        "import json; write(rows)\n"
        "print(json.dumps([os.environ.get('KAGGLE_KERNEL_RUN_TYPE'), os.environ.get('KAGGLE_IS_COMPETITION_RERUN'),"
        "sorted(n for n in os.environ if 'KAGGLE' in n), len(rows)]))"
    )
    run_type, rerun, names, lines = json.loads(go(code, only=kind).log.read_text())
    assert [run_type, rerun] == expected
    rerun_name = ["KAGGLE_IS_COMPETITION_RERUN"] if kind == "hidden" else []
    assert names == [*rerun_name, "KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_KIT_ROOT", "KAGGLE_KIT_TIME_LIMIT_S"]
    assert lines == (19 if kind == "hidden" else 5)


def test_the_kernel_sees_the_hidden_test_and_no_solution(go) -> None:
    names = go(START + "print(sorted(p.name for p in data.iterdir())); write(rows)").log.read_text().strip()
    test = [f"test_{i}.parquet" for i in (0, 1)]
    assert names == str(["sample_submission.csv", *test, "train.csv", *[f"train_{i}.parquet" for i in (0, 1, 2)]])


# How submissions die, each in Kaggle's words

ALL_SHARDS = """
from pyarrow import parquet
held = []
for path in sorted(data.glob("test_*.parquet")):
    table = parquet.read_table(path).drop_columns(["image_id"])
    held.append([column.to_numpy().astype("float32") for column in table.columns])
write(rows)
"""


@pytest.mark.parametrize(
    ("code", "answer", "detail"),
    [
        ("raise ValueError('bad luck')", "Notebook Threw Exception", "ValueError: bad luck"),
        ("sys.exit(3)", "Notebook Threw Exception", "exit code 3"),
        ("os.abort()", "Notebook Threw Exception", "killed by signal 6"),
        (
            "for name, _ in rows[1:]:\n    {'Test_4_root': 1}[name] if name == 'Test_7_root' else 0",
            "Notebook Threw Exception",
            "KeyError: 'Test_7_root'",
        ),
        ("import urllib.request as u; u.urlopen('http://example.com')", "Notebook Threw Exception", "urlopen error"),
        ("pass", "Submission CSV Not Found", "expected submission.csv in the working folder"),
        ("write(rows, 'sub.csv')", "Submission CSV Not Found", "in the working folder; found sub.csv"),
        ("write(rows, root / 'submission.csv')", "Submission CSV Not Found", "expected submission.csv"),
        ("write(rows[:1])", "Submission Scoring Error", "has 0 rows"),
        ("write(rows[:-1])", "Submission Scoring Error", "has 17 rows; the sample submission has 18"),
        ("write([[*row, 0] for row in rows])", "Submission Scoring Error", "has columns"),
        ("write([['id', 'target'], *rows[1:]])", "Submission Scoring Error", "has columns"),
        ("write([rows[0], *rows[:0:-1]])", "Submission Scoring Error", "write rows in its order"),
        ("write([rows[0], *[[n, 'nan'] for n, _ in rows[1:]]])", "Submission Scoring Error", "'nan'"),
        ("write([rows[0], *[[n, 0.5] for n, _ in rows[1:]]])", "Submission Scoring Error", "'0.5'"),
        ("write([rows[0], *[[n, 7] for n, _ in rows[1:]]])", "Submission Scoring Error", "'7'"),
        ("import time; write(rows); time.sleep(60)", "Notebook Timeout", "its limit is 2 s"),
        ("x = bytearray(700_000_000); import time; time.sleep(60)", "Notebook Exceeded Allowed Compute", "of memory"),
        (
            "open('a', 'wb').write(bytes(120_000_000)); import time; time.sleep(60)",
            "Notebook Exceeded Allowed Compute",
            "the working folder held 0.1",
        ),
        (
            "open('a', 'wb').write(bytes(120_000_000)); write(rows)",
            "Notebook Exceeded Allowed Compute",
            "the working folder held 0.1",
        ),
    ],
)
def test_failures_are_told_in_kaggle_s_words(go, code: str, answer: str, detail: str) -> None:
    started = time.monotonic()
    result = go(START + code, time_limit_s=2.0, memory_gb=0.5, disk_gb=0.1)
    assert (result.answer, result.score, result.would_fail) == (answer, None, True), result.detail
    assert detail in result.detail
    assert time.monotonic() - started < 30


def test_reading_all_shards_as_floats_is_out_of_memory_where_the_test_is_large(go, larger: Path) -> None:
    assert go(START + ALL_SHARDS, memory_gb=0.2).answer == "Complete"
    result = go(START + ALL_SHARDS, hidden=larger, memory_gb=0.2)
    assert (result.answer, "of memory; its limit is 0.2 GB" in result.detail) == (
        "Notebook Exceeded Allowed Compute",
        True,
    ), result.detail


# The quiet ones


def quiet(result: Rehearsal) -> str:
    assert result.answer == "Complete", result.detail
    return "\n".join(result.warnings)


def test_an_all_default_submission_is_warned_about(go, larger: Path) -> None:
    code = "try:\n    import a_package_nobody_has\nexcept ImportError:\n    write(rows)"
    assert "answers what the sample submission does" in quiet(go(START + code, hidden=larger))


def test_a_network_that_is_missed_is_warned_about(go) -> None:
    code = (
        "import urllib.request as u\n"
        "try:\n    u.urlopen('http://example.com/weights.bin', timeout=3)\n"
        "except OSError as error:\n    print('no pretrained weights:', error)\n"
        "write(rows)"
    )
    assert "the log speaks of a network, and there is none in the rerun: no pretrained" in quiet(go(START + code))


def test_a_gpu_that_is_passed_over_is_warned_about(go) -> None:
    code = (
        "import onnxruntime as ort\n"
        "path = next((root / 'input').glob('**/member_*.onnx'))\n"
        "ort.InferenceSession(str(path), providers=['CUDAExecutionProvider', 'CPUExecutionProvider'])\n"
        "write(rows)"
    )
    result = go(START + code)
    if "not in available" not in result.log.read_text():
        pytest.skip("this onnxruntime has a CUDA provider")
    assert "the log speaks of the CPU in place of a GPU" in quiet(result)


def test_a_kernel_without_onnxruntime_s_wheels_is_warned_about(go, tmp_path: Path) -> None:
    for sources in (["a/kaggle-kit-onnxruntime"], ["a/kaggle-kit-wheelhouse"]):
        kernel = write_kernel(tmp_path / "kernel", START + "write(answers)", dataset_sources=sources)
        assert go(kernel).warnings == ()
    (warning,) = go(write_kernel(tmp_path / "kernel", START + "write(answers)", dataset_sources=[])).warnings
    assert "attaches no onnxruntime dataset (none at all)" in warning


# What is attached, and by what it runs


def test_inputs_lie_in_the_old_layout_too(go) -> None:
    code = START + "print(sorted(p.name for p in (root / 'input').iterdir())); write(rows)"
    assert go(code).log.read_text().strip() == "['competitions', 'datasets']"
    old = go(code, layout="old").log.read_text().strip()
    assert old == "['kaggle-kit-bundle', 'kaggle-kit-wheel', 'toy-wide']"
    assert go(SUBMIT, layout="old").answer == "Complete"


def test_further_datasets_are_attached_and_a_stale_wheel_is_told(go, tmp_path: Path) -> None:
    mine, own = tmp_path / "mine", tmp_path / "own-wheel"
    (mine / "deep").mkdir(parents=True)
    (mine / "deep" / "x.txt").write_text("x")
    wheel = build_wheel(own)
    code = (
        START
        + "print(sorted(str(p.relative_to(root / 'input/datasets/owner')) for p in "
        + ("(root / 'input/datasets/owner').glob('*/**/*') if p.is_file() and 'bundle' not in str(p))); write(answers)")
    )
    result = go(code, attach=[mine, own])
    assert result.log.read_text().strip() == str(["mine/deep/x.txt", f"own-wheel/{wheel.name}"])
    assert result.warnings == ()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("kaggle_kit/of_yesterday.py", "")
    (warning,) = go(code, attach=[own]).warnings
    assert "is stale: 'kaggle_kit/of_yesterday.py' differ(s)" in warning
    wheel.write_bytes(b"?")
    with pytest.raises(KitError, match="is no whole wheel"):
        go(code, attach=[own])


def test_what_the_kernel_installs_stays_in_a_layer_of_its_interpreter(go) -> None:
    code = START + "import numpy; print(sys.prefix, numpy.__version__); write(rows)"
    assert go(code).log.read_text().split()[0] == sys.prefix
    prefix, version = go(code, python=Path(sys.executable)).log.read_text().split()
    assert prefix.endswith("work/hidden/python") and version


def test_a_notebook_is_run_as_its_cells(go, tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": "# Hello"},
        {"cell_type": "code", "source": START.splitlines(keepends=True)},
        {"cell_type": "code", "source": "write(rows)"},
    ]
    kernel = write_kernel(tmp_path / "kernel", "", code_file="it.ipynb")
    (kernel / "it.ipynb").write_text(json.dumps({"cells": cells}))
    assert go(kernel).answer == "Complete"
    (kernel / "it.ipynb").write_text(json.dumps({"cells": [*cells, {"cell_type": "code", "source": "sys.exit(0)"}]}))
    assert "sys.exit(0) in a notebook, which Kaggle takes for a failure" in go(kernel).detail


# Hard cases


def test_hard_cases_are_run_after_the_plain_rehearsal_and_compared_with_it(go, tmp_path: Path) -> None:
    said: list[str] = []
    by_place = START + "write(answers)"
    result = go(by_place, inject=["shuffled-rows", "truncated-image", "one-row"], echo=said.append)
    shuffled, truncated, one = result.cases
    assert result.answer == "Complete" and not result.would_fail
    assert (shuffled.changed > 0, shuffled.changed_elsewhere, shuffled.lines) == (True, shuffled.changed, 18)
    assert truncated.run is None and truncated.injection.skipped == "its images are bare pixels of one size"
    assert one.lines == 2
    assert any("hard case shuffled-rows" in w and "are images joined by place" in w for w in result.warnings)
    assert "hard case truncated-image (an image's bytes end early): does not apply" in said


def test_a_hard_case_that_costs_a_submission_fails_the_rehearsal(go) -> None:
    result = go(START + "assert len(rows) > 1, 'nothing to do'\nwrite(rows)", inject=["empty-test"])
    assert result.answer == "Complete" and result.failed_cases == ("empty-test",) and result.would_fail
    assert result.cases[0].run is not None and "AssertionError: nothing to do" in result.cases[0].run.detail


def test_a_plain_failure_leaves_hard_cases_out(go) -> None:
    assert go("raise ValueError", inject=["all"]).cases == ()


# Without a network, and without writing to the inputs

CONNECT = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=3)
except OSError:
    sys.exit("no network")
"""


@pytest.mark.parametrize("namespaces", [True, False])
def test_the_kernel_cannot_reach_a_server_that_listens(go, monkeypatch: pytest.MonkeyPatch, namespaces: bool) -> None:
    if not namespaces:
        monkeypatch.setattr(module, "can_isolate", lambda _folder: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=3).close()
        server.accept()[0].close()
        result = go(CONNECT.replace("PORT", str(port)))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (result.answer, result.detail) == ("Notebook Threw Exception", "in the hidden run: no network")
    assert result.isolation in ("network namespace", "sockets blocked in Python")
    assert namespaces or result.isolation == "sockets blocked in Python"


def test_without_namespaces_the_kernel_writes_to_copies_only(
    go, monkeypatch: pytest.MonkeyPatch, trained: tuple[Toy, list[Run]]
) -> None:
    monkeypatch.setattr(module, "can_isolate", lambda _folder: False)
    before = (trained[0].data / "train.csv").read_bytes()
    result = go(START + "(data / 'train.csv').write_text('x'); write(rows)")
    assert (result.answer, result.read_only) == ("Complete", False)
    assert (trained[0].data / "train.csv").read_bytes() == before


def test_the_kernel_cannot_write_its_inputs(go) -> None:
    result = go(START + "(root / 'input' / 'x').write_text('')")
    if not result.read_only:
        pytest.skip("this system does not allow mount namespaces")
    assert "Read-only file system" in result.detail


def test_the_kernel_has_the_cores_that_it_is_given(go) -> None:
    result = go(START + "write(rows); print(len(os.sched_getaffinity(0)))", cores=1)
    assert (result.log.read_text().strip(), result.cores) == ("1", 1)
    (note,) = [note for note in go(START + "write(rows)", cores=4096).notes if "cores" in note]
    assert "in place of 4096" in note


# Slips of the user


def test_slips_of_the_user_are_not_blamed_on_the_kernel(
    go, trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path
) -> None:
    toy = trained[0]
    with pytest.raises(DataError, match="there is no hidden test .*give a folder with sample_submission.csv, test_"):
        go(SUBMIT, hidden=tmp_path / "nothing")
    hidden = shutil.copytree(toy.hidden, tmp_path / "hidden")
    (hidden / "sample_submission.csv").unlink()
    with pytest.raises(DataError, match=r"hidden lacks 'sample_submission.csv'; a hidden test is made of"):
        go(SUBMIT, hidden=hidden)
    with pytest.raises(
        DataError, match=r"lacks 'sample_submission.csv', 'test_\*.parquet', the visible test; .*--only"
    ):
        (tmp_path / "empty").mkdir()
        go(SUBMIT, only=None, data=tmp_path / "empty")
    with pytest.raises(DataError, match="there is no data folder"):
        go(SUBMIT, data=tmp_path / "nothing")
    with pytest.raises(RehearsalError, match="is no kernel .*; did you mean 'submit'"):
        go(SUBMIT.parent / "sumbit")
    misnamed = replace(toy.task, submission=replace(toy.task.submission, target="label"))
    with pytest.raises(DataError, match="has the columns 'row_id', 'target', and a submission of this task .*'label'"):
        rehearse(SUBMIT, misnamed, data=toy.data, hidden=toy.hidden, bundle=bundle_folder, work=tmp_path / "w")
    with pytest.raises(BundleError, match="bundel is no bundle"):
        go(SUBMIT, bundle=tmp_path / "bundel")
    with pytest.raises(RehearsalError, match="there is no folder .*lost' to attach"):
        go(SUBMIT, attach=[tmp_path / "lost"])
    with pytest.raises(RehearsalError, match="two datasets are named 'hidden'"):
        go(SUBMIT, attach=[hidden, toy.hidden])
    with pytest.raises(RehearsalError, match="there is no hidden test to run; give its folder"):
        go(SUBMIT, hidden=None)
    with pytest.raises(RehearsalError, match="there is no hard case 'one-raw'; did you mean 'one-row'"):
        go(SUBMIT, inject=["one-raw"])
    with pytest.raises(RehearsalError, match="hard cases are made of the hidden test"):
        go(SUBMIT, only="visible", inject=["one-row"])
    other = replace(toy.task, name="other")
    with pytest.raises(RehearsalError, match="is a bundle for task 'toy-wide', not 'other'"):
        rehearse(SUBMIT, other, data=toy.data, hidden=toy.hidden, bundle=bundle_folder, work=tmp_path / "w")


def test_what_is_not_scored_of_a_hidden_test_is_said(trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    toy = trained[0]
    assert list(solution_notes(toy.task, toy.hidden)) == []
    hidden = shutil.copytree(toy.hidden, tmp_path / "hidden")
    lines = (hidden / "solution.csv").read_text().splitlines()
    (hidden / "solution.csv").write_text("\n".join(line for line in lines if not line.startswith("Test_0_")) + "\n")
    assert "lacks 1 of 9 images, and they are not scored: 'Test_0'" in next(solution_notes(toy.task, hidden))
    (hidden / "solution.csv").write_text(
        "\n".join([*lines, *(line.replace("Test_0_", "Other_") for line in lines if line.startswith("Test_0_"))])
    )
    with pytest.raises(DataError, match="solution.csv has .* that .*sample_submission.csv does not ask for: 'Other'"):
        next(solution_notes(toy.task, hidden))
    (hidden / "solution.csv").unlink()
    assert next(solution_notes(toy.task, hidden)).endswith("solution.csv is not there: nothing was scored")


def test_without_a_bundle_none_is_attached(go) -> None:
    code = START + "print(sorted(p.name for p in (root / 'input/datasets/owner').iterdir())); write(rows)"
    assert go(code, bundle=None).log.read_text().strip() == "['kaggle-kit-wheel']"


# Ends


def test_ctrl_c_ends_the_kernel(go, tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        go(code, echo=interrupt)
    pid = int((tmp_path / "work" / "hidden" / "kernel.log").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_what_a_kernel_leaves_in_the_background_ends_with_it(go) -> None:
    code = START + (
        "import subprocess\nwrite(rows)\n"
        "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    result = go(code)
    assert result.answer == "Complete" and result.seconds < 30
    stat = Path(f"/proc/{int(result.log.read_text())}/stat")
    assert not stat.exists() or ") Z " in stat.read_text()


KILLED = """
import os, sys
from pathlib import Path
from kaggle_kit.platform.rehearse import rehearse
from kaggle_kit.task import read_task
kernel, task, data, work = sys.argv[1:]
rehearse(Path(kernel), read_task(task), data=Path(data), work=Path(work), only="visible")
"""


def test_after_kill_9_nothing_goes_on_and_the_next_rehearsal_may_begin(
    go, trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    import yaml

    from kaggle_kit.task import task_to_plain

    toy, said = trained[0], []
    code = "import subprocess, time\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)"
    kernel = write_kernel(tmp_path / "slow", code)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(task_to_plain(toy.task)))))
    arguments = [str(kernel), str(tmp_path / "task.yaml"), str(toy.data), str(tmp_path / "work")]
    with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.DEVNULL) as first:
        log = tmp_path / "work" / "visible" / "kernel.log"
        until = time.monotonic() + 60
        while not (log.is_file() and log.read_text().strip()) and time.monotonic() < until:
            time.sleep(0.05)
        pid = int(log.read_text())
        with pytest.raises(RehearsalError, match="another rehearsal runs in .*work; wait for it"):
            go(START + "write(rows)")
        first.kill()
    result = go(START + "write(rows)", echo=said.append)
    assert result.answer == "Complete"
    if os.name == "posix" and Path("/proc/self").exists():
        assert any("of a killed rehearsal were still at work" in line for line in said)
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or ") Z " in stat.read_text()
