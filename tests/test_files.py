from __future__ import annotations

import builtins
import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kaggle_kit.errors import BundleError
from kaggle_kit.files import lock, put_folder, replacing_folder

OWN = ("a.txt", "b.txt")
WAITING = """
import sys, time
from pathlib import Path
from kaggle_kit.errors import BundleError
from kaggle_kit.files import replacing_folder

with replacing_folder(Path(sys.argv[1]), (), what="bundle", error=BundleError) as work:
    (work / "a.txt").write_text("half")
    print(work, flush=True)
    time.sleep(600)
"""
SWAPPING = """
import os, sys
from pathlib import Path
from kaggle_kit.files import put_folder

rename, done = Path.rename, []
def rename_once(self, target):
    if done:
        os.kill(os.getpid(), 9)
    done.append(target)
    return rename(self, target)
Path.rename = rename_once
put_folder(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def write(folder: Path, name: str = "a.txt", *, text: str = "new", own: tuple[str, ...] = OWN) -> None:
    """Write a folder of one file, as a command would."""
    with replacing_folder(folder, own, what="bundle", error=BundleError) as work:
        (work / name).write_text(text)


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def start_writing(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that writes a folder and does not come to an end; return it, and where it writes."""
    child = subprocess.Popen([sys.executable, "-c", WAITING, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def killed_in_its_swap(folder: Path) -> Path:
    """Let a process die after it moved an earlier folder away; return where that is now."""
    folder.mkdir()
    (folder / "a.txt").write_text("earlier")
    finished = folder.parent / "finished"
    finished.mkdir()
    assert subprocess.run([sys.executable, "-c", SWAPPING, str(finished), str(folder)], check=False).returncode == -9
    finished.rmdir()
    (old,) = folder.parent.iterdir()
    assert not folder.exists() and (old / folder.name / "a.txt").read_text() == "earlier"
    return old


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder)
    with pytest.raises(ZeroDivisionError), replacing_folder(folder, OWN, what="bundle", error=BundleError) as work:
        (work / "b.txt").write_text("half")
        _ = 1 / 0
    assert [path.name for path in folder.iterdir()] == ["a.txt"] and not beside(folder)
    write(folder, "b.txt")
    assert [path.name for path in folder.iterdir()] == ["b.txt"] and not beside(folder)


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    child, work = start_writing(folder)
    kill(child)
    assert (work / "a.txt").read_text() == "half", "kill -9 leaves it"
    write(folder)
    assert (folder / "a.txt").read_text() == "new" and not beside(folder)


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    child, work = start_writing(folder)
    try:
        write(folder)
        assert beside(folder) == [work.name] and (work / "a.txt").read_text() == "half"
    finally:
        kill(child)


def test_other_folders_stay(tmp_path: Path) -> None:
    others = (".out.mybackup", ".out.old.mybackup", ".out.unfinished", ".out.unfinished.unfinished.abcdefgh", ".out2.x")
    for name in others:
        (tmp_path / name / "out").mkdir(parents=True)
    (tmp_path / ".out.unfinished.file").write_text("a file")
    (tmp_path / ".out.unfinished.link").symlink_to(tmp_path / ".out.mybackup")
    write(tmp_path / "out")
    found = beside(tmp_path / "out")
    assert found == sorted([*others, ".out.unfinished.file", ".out.unfinished.link"])
    assert all((tmp_path / name / "out").is_dir() for name in others)


def write_often(folder: Path, text: str, failed: Any) -> None:
    for _ in range(150):
        try:
            write(folder, text=text)
        except FileNotFoundError as error:
            if ".unfinished." in str(error.filename):
                failed.put(str(error))
        except OSError:
            continue  # both were about to rename theirs


def test_processes_that_write_one_folder_at_once_leave_each_other_s_work_alone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failed = context.SimpleQueue()
    children = [context.Process(target=write_often, args=(tmp_path / "out", text, failed)) for text in ("a", "b", "c")]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert failed.empty() and [child.exitcode for child in children] == [0, 0, 0]
    write(tmp_path / "out")
    assert not beside(tmp_path / "out")


def test_a_folder_that_a_killed_process_had_moved_away_comes_back_when_the_next_one_fails(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    killed_in_its_swap(folder)
    with pytest.raises(ZeroDivisionError), replacing_folder(folder, (), what="bundle", error=BundleError):
        _ = 1 / 0
    assert (folder / "a.txt").read_text() == "earlier" and not beside(folder)


def test_a_folder_that_a_killed_process_had_moved_away_goes_once_the_next_one_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    old = killed_in_its_swap(folder)
    with replacing_folder(folder, (), what="bundle", error=BundleError) as work:
        assert (old / "out" / "a.txt").exists(), "nothing else is there yet"
        (work / "a.txt").write_text("new")
    assert (folder / "a.txt").read_text() == "new" and not beside(folder)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_swap_that_fails_puts_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    folder, finished, rename = tmp_path / "out", tmp_path / "finished", Path.rename
    write(folder, text="earlier")
    finished.mkdir()

    def fail(self: Path, target: Path) -> Path:
        if self == finished:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(error):
        put_folder(finished, folder)
    assert (folder / "a.txt").read_text() == "earlier" and beside(folder) == ["finished"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def without_fcntl(monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def find_others(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "fcntl":
            raise ImportError(name)
        return find(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", find_others)


def test_a_lock_is_held_until_its_handle_is_closed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with opened(tmp_path) as first, opened(tmp_path) as second:
        assert lock(first, wait=False) == "ours"
        assert lock(second, wait=False) == "another's"
    with opened(tmp_path) as third:
        assert lock(third, wait=True) == "ours"


def test_where_there_are_no_locks_they_are_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fail(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with opened(tmp_path) as handle:
        monkeypatch.setattr(fcntl, "flock", fail)
        assert lock(handle, wait=False) == lock(handle, wait=True) == "nobody's"
        without_fcntl(monkeypatch)
        assert lock(handle, wait=False) == "nobody's"


def test_where_folders_cannot_be_locked_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".out.unfinished.abcdefgh").mkdir()
    without_fcntl(monkeypatch)
    write(tmp_path / "out")
    assert beside(tmp_path / "out") == [".out.unfinished.abcdefgh"]
