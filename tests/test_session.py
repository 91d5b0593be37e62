from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kaggle_kit.platform.processes import kill_leftovers, memory_gb
from kaggle_kit.platform.session import can_isolate, folder_gb


def test_unshare_is_told_when_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert can_isolate(tmp_path) is False


def test_a_folder_is_measured_by_the_disk_it_takes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "whole").write_bytes(bytes(3 << 20))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert 3 / 1024 <= folder_gb(tmp_path) < 0.1


def test_memory_counts_the_children_and_what_was_held_before() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not tell")
    code = (
        "import subprocess, sys\nx = bytearray(200_000_000); del x\n"
        "child = 'x = bytearray(100_000_000); print(1, flush=True); input()'\n"
        "subprocess.run([sys.executable, '-c', child])"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes) as child:
        assert child.stdout and child.stdin
        child.stdout.readline()
        held = memory_gb(child.pid)
        child.stdin.close()
    assert 0.18 < held < 0.5
    assert memory_gb(child.pid) == 0


def test_only_processes_of_this_work_folder_are_left_overs(tmp_path: Path) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system does not tell")
    roots = [tmp_path / "work" / "hidden", tmp_path / "work2" / "hidden"]
    children = [subprocess.Popen(["sleep", "60"], env={**os.environ, "KAGGLE_KIT_ROOT": str(root)}) for root in roots]
    try:
        for child in children:  # just started, a process has no environment of its own for a moment
            while b"KAGGLE_KIT_ROOT=" not in Path(f"/proc/{child.pid}/environ").read_bytes():
                time.sleep(0.01)
        assert kill_leftovers(tmp_path / "work") == 1
        assert children[0].wait(10) < 0 and children[1].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()
