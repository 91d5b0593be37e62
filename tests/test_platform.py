from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Toy

from kaggle_kit.errors import BundleError, DataError, RehearsalError
from kaggle_kit.platform import rehearse as module
from kaggle_kit.platform.rehearse import Rehearsal, rehearse
from kaggle_kit.platform.wheel import build_wheel, find_kernel, kernels_folder
from kaggle_kit.runs import Run

SUBMIT = kernels_folder() / "submit"


@pytest.fixture
def go(trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path):
    """Rehearse a kernel, given its folder or its code."""

    def run(kernel: Path | str, **options) -> Rehearsal:
        toy, _ = trained
        if isinstance(kernel, str):
            folder = tmp_path / "kernel"
            folder.mkdir(exist_ok=True)
            (folder / "main.py").write_text(kernel)
            (folder / "kernel-metadata.json").write_text('{"code_file": "main.py", "enable_internet": false}')
            kernel = folder
        options = {"data": toy.data, "hidden": toy.hidden, "bundle": bundle_folder, "echo": lambda _: None} | options
        return rehearse(kernel, toy.task, work=tmp_path / "work", **options)

    return run


def test_the_submit_kernel_completes_from_the_wheel_and_is_scored(go) -> None:
    result = go(SUBMIT)
    assert (result.answer, result.detail) == ("Complete", ""), result.log.read_text()
    assert result.score is not None and result.score.all.rows == 9
    assert "kaggle_kit from" in result.log.read_text()
    assert 0.05 < result.peak_memory_gb < 2
    assert go(SUBMIT).answer == "Complete"  # a second rehearsal replaces the first


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
        monkeypatch.setattr(module, "_namespaces_work", lambda _folder: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=3).close()
        server.accept()[0].close()
        result = go(CONNECT.replace("PORT", str(port)))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (result.answer, result.detail) == ("Notebook Threw Exception", "no network")
    assert result.isolation in ("network namespace", "sockets blocked in Python")
    assert namespaces or result.isolation == "sockets blocked in Python"


def test_without_namespaces_the_kernel_writes_to_copies_only(
    go, monkeypatch: pytest.MonkeyPatch, trained: tuple[Toy, list[Run]]
) -> None:
    monkeypatch.setattr(module, "_namespaces_work", lambda _folder: False)
    before = (trained[0].data / "train.csv").read_bytes()
    place = "pathlib.Path(os.environ['KAGGLE_KIT_ROOT']) / 'input/competitions/toy-wide/train.csv'"
    go(f"import os, pathlib\n({place}).write_text('x')")
    assert (trained[0].data / "train.csv").read_bytes() == before


def test_a_symlinked_folder_of_images_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.jpg").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    assert [path.name for path in module._files_below(tmp_path / "data")] == ["1.jpg"]


def test_ctrl_c_ends_the_kernel(go, tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        go(code, echo=interrupt)
    pid = int((tmp_path / "work" / "kernel.log").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_a_kernel_without_onnxruntime_s_wheels_is_warned_about(go) -> None:
    assert go(SUBMIT).warnings == ()
    (warning,) = go("pass").warnings
    assert "attaches no onnxruntime dataset (none at all)" in warning


def test_templates_go_by_name_and_paths_by_path(tmp_path: Path) -> None:
    assert find_kernel(Path("submit")) == SUBMIT
    assert find_kernel(tmp_path) == tmp_path
    assert find_kernel(tmp_path / "submit") == tmp_path / "submit"


def test_the_kernel_cannot_write_its_inputs(go) -> None:
    result = go(
        "import os, pathlib\nr = pathlib.Path(os.environ['KAGGLE_KIT_ROOT'])\n(r / 'input' / 'x').write_text('')"
    )
    if not result.read_only:
        pytest.skip("this system does not allow mount namespaces")
    assert "Read-only file system" in result.detail


def test_the_kernel_sees_the_hidden_test_and_no_solution(go) -> None:
    code = (
        "import os, pathlib\nr = pathlib.Path(os.environ['KAGGLE_KIT_ROOT'])\n"
        "print(sorted(p.name for p in (r / 'input/competitions/toy-wide').iterdir()))\n"
        "print(len((r / 'input/competitions/toy-wide/sample_submission.csv').read_text().splitlines()))\n"
        "print(sorted(n for n in os.environ if 'KAGGLE' in n))\n"
    )
    log = go(code).log.read_text().splitlines()
    assert log[0] == str(
        [
            "sample_submission.csv",
            *[f"test_{i}.parquet" for i in (0, 1)],
            "train.csv",
            *[f"train_{i}.parquet" for i in (0, 1, 2)],
        ]
    )
    assert log[1] == "19"
    assert (
        log[2]
        == "['KAGGLE_IS_COMPETITION_RERUN', 'KAGGLE_KERNEL_RUN_TYPE', 'KAGGLE_KIT_ROOT', 'KAGGLE_KIT_TIME_LIMIT_S']"
    )


@pytest.mark.parametrize(
    ("code", "answer", "detail"),
    [
        ("raise ValueError('bad luck')", "Notebook Threw Exception", "ValueError: bad luck"),
        ("import sys; sys.exit(3)", "Notebook Threw Exception", "exit code 3"),
        ("pass", "Submission CSV Not Found", "expected submission.csv in the working folder"),
        ("open('submission.csv', 'w').write('row_id,target\\n')", "Submission Scoring Error", "has 0 rows"),
        ("import time; time.sleep(60)", "Notebook Timeout", "stopped after"),
        ("x = bytearray(700_000_000); import time; time.sleep(60)", "Notebook Exceeded Allowed Compute", "stopped at"),
    ],
)
def test_failures_are_told_in_kaggle_s_words(go, code: str, answer: str, detail: str) -> None:
    started = time.monotonic()
    result = go(code, time_limit_s=6.0, memory_gb=0.5)
    assert (result.answer, result.score) == (answer, None)
    assert detail in result.detail
    assert time.monotonic() - started < 30


def test_the_originals_are_untouched(go, trained: tuple[Toy, list[Run]]) -> None:
    toy, _ = trained
    before = {path: path.stat().st_mtime_ns for path in toy.data.rglob("*")}
    go(SUBMIT)
    assert {path: path.stat().st_mtime_ns for path in toy.data.rglob("*")} == before


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not name a `code_file`"),
        ({"code_file": "main.py"}, "write `enable_internet: false`"),
        ({"code_file": "none.py", "enable_internet": False}, "code_file 'none.py' is no Python script beside it"),
    ],
)
def test_kernels_that_are_none_are_refused(go, tmp_path: Path, metadata: dict[str, object], message: str) -> None:
    (tmp_path / "kernel-metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(RehearsalError, match=message):
        go(tmp_path)


def test_folders_of_other_things_are_never_replaced(go, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("keep me")
    with pytest.raises(RehearsalError, match="is not empty and no rehearsal"):
        go(SUBMIT)


def test_slips_of_the_user_are_not_blamed_on_the_kernel(go, trained: tuple[Toy, list[Run]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no hidden test .*give a folder with sample_submission.csv, test_"):
        go(SUBMIT, hidden=tmp_path / "nothing")
    hidden = shutil.copytree(trained[0].hidden, tmp_path / "hidden")
    (hidden / "sample_submission.csv").unlink()
    with pytest.raises(DataError, match=r"hidden lacks 'sample_submission.csv'; a hidden test is made of"):
        go(SUBMIT, hidden=hidden)
    with pytest.raises(BundleError, match="bundel is no bundle"):
        go(SUBMIT, bundle=tmp_path / "bundel")


def test_a_bundle_of_another_task_is_refused(
    bundle_folder: Path, trained: tuple[Toy, list[Run]], tmp_path: Path
) -> None:
    toy = trained[0]
    with pytest.raises(RehearsalError, match="is a bundle for task 'toy-wide', not 'other'"):
        other = replace(toy.task, name="other")
        rehearse(SUBMIT, other, data=toy.data, hidden=toy.hidden, bundle=bundle_folder, work=tmp_path / "w")


def test_the_wheel_holds_the_package_and_is_the_same_every_time(tmp_path: Path) -> None:
    first = build_wheel(tmp_path / "a")
    assert first.read_bytes() == build_wheel(tmp_path / "b").read_bytes()
    assert first.stat().st_size < 1_000_000
    assert first.name.endswith("-py3-none-any.whl") and "+" not in first.name
    names = zipfile.ZipFile(first).namelist()
    for name in ("cli.py", "tasks/bengali.yaml", "conf/config.yaml", "kernels/submit/submit.py", "py.typed"):
        assert f"kaggle_kit/{name}" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_package_imports_from_the_wheel_s_path(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import kaggle_kit; from kaggle_kit.task import read_task; "
        "print(kaggle_kit.__file__, read_task('bengali').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f"{wheel}/kaggle_kit/__init__.py bengaliai-cv19"


def test_the_kernel_template_is_short_and_its_metadata_is_kaggle_s() -> None:
    assert len((SUBMIT / "submit.py").read_text().splitlines()) <= 45
    metadata = json.loads((SUBMIT / "kernel-metadata.json").read_text())
    owner, slug = metadata["id"].split("/")
    assert metadata["title"].lower().replace(" ", "-") == slug
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert f"{owner}/{slug}" not in metadata["dataset_sources"]


@pytest.mark.parametrize("name", sorted(path.name for path in (Path(__file__).parents[1] / "datasets").iterdir()))
def test_dataset_metadata_keeps_kaggle_s_rules(name: str) -> None:
    path = Path(__file__).parents[1] / "datasets" / name / "dataset-metadata.json"
    metadata = json.loads(path.read_text())
    assert 6 <= len(metadata["title"]) <= 50 and 20 <= len(metadata["subtitle"]) <= 80
    assert metadata["id"] == f"OWNER/{name}"
    assert [list(entry) for entry in metadata["licenses"]] == [["name"]]


def test_unshare_is_told_when_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert module._namespaces_work(tmp_path) is False
