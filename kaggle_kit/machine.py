"""What this machine gives a process."""

from __future__ import annotations

import os


class _Sharing:
    num_processes = 1


def num_cores() -> int:
    """Return how many cores this process may keep busy, which may be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _Sharing.num_processes)


def share_cores(num_processes: int) -> None:
    """Make this process, one of several that work at once, keep to its share of the cores, in OpenCV too."""
    import cv2

    _Sharing.num_processes = num_processes
    cv2.setNumThreads(num_cores() if num_cores() > 1 else 0)


def memory_bytes() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
