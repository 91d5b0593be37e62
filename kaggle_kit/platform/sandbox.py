"""Run a kernel's script with read-only inputs, few cores and no network; started as a script by `session`.

    python sandbox.py SCRIPT --read-only DIR --python PYTHON     inside `unshare --user --map-root-user --net --mount`
    python sandbox.py SCRIPT --block-sockets                     where namespaces are not allowed

It imports nothing of kaggle_kit, and nothing newer than Python 3.11: the kernel must find its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

MESSAGE = "rehearsal: the submission kernel has no network"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Set up what the arguments ask for, then become the kernel."""
    parser = argparse.ArgumentParser()
    parser.add_argument("script")
    parser.add_argument("--cores", default="", metavar="0,1")
    parser.add_argument("--read-only", type=Path, metavar="DIR")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--block-sockets", action="store_true")
    options = parser.parse_args(arguments)
    _die_with_parent()
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in options.cores.split(",")])
    if not options.block_sockets:
        _mount_read_only(options.read_only)
        os.execv(options.python, [options.python, "-u", options.script])  # noqa: S606
    _block_sockets()
    sys.argv = [options.script]
    sys.path[0] = str(Path(options.script).parent)
    runpy.run_path(options.script, run_name="__main__")


def _die_with_parent() -> None:
    """Have the system kill this process when the rehearsal is killed: nobody else would stop it for hours."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _mount_read_only(folder: Path) -> None:
    for options in ("bind", "remount,bind,ro"):
        subprocess.run(["mount", "-o", options, str(folder), str(folder)], check=True)


def _block_sockets() -> None:
    def refuse(*_arguments: Any, **_options: Any) -> NoReturn:
        raise OSError(MESSAGE)

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = refuse


if __name__ == "__main__":
    main(sys.argv[1:])
