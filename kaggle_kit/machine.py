"""What this machine gives a process."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class _Sharing:
    """How this process shares the machine with others, and its threads with OpenCV's."""

    num_processes = 1
    lock = threading.Lock()
    num_pools = 0
    opencv_threads = 0


def is_first_process() -> bool:
    """Return whether this process speaks for those that `torchrun` started together; True where it runs alone."""
    return os.environ.get("RANK", "0") == "0"


def num_cores() -> int:
    """Return how many cores this process may keep busy, which may be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")  # a container's share of the machine
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    beside = _Sharing.num_processes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # what `torchrun` started here
    return max(1, cores // beside)


def let_idle_threads_sleep() -> None:
    """Let OpenMP's idle threads fall asleep after microseconds, where the user does not say otherwise.

    torch on Linux brings GNU's OpenMP, whose threads wait for work in a busy loop of milliseconds. Where anything else
    wants a core, they burn the time of the thread they wait for: `benchmarks/shared_cores.py`. It is read once, when
    torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextlib.contextmanager
def decoding_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of as many threads as cores, for work in OpenCV, which starts no threads of its own meanwhile.

    Its threads inside of ours cost a third of the speed. Work that has not begun when the block ends is dropped.
    """
    import cv2

    with _Sharing.lock:
        if _Sharing.num_pools == 0:
            _Sharing.opencv_threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _Sharing.num_pools += 1
    pool = ThreadPoolExecutor(num_cores(), thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        with _Sharing.lock:
            _Sharing.num_pools -= 1
            if _Sharing.num_pools == 0:
                cv2.setNumThreads(_Sharing.opencv_threads)


def share_cores(num_processes: int) -> None:
    """Make this process, one of several that work at once, keep to its share of the cores, in OpenCV too."""
    import cv2

    _Sharing.num_processes = num_processes
    cv2.setNumThreads(num_cores())


def memory_bytes() -> int | None:
    """Return the memory of the machine, or of this container, in bytes, or None where the system does not say."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = _cgroup("memory.max")
    return min(whole, int(limit)) if limit.isdigit() else whole


@functools.cache
def _cgroup(name: str) -> str:
    """Return a limit that a Linux container sets, or nothing."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
