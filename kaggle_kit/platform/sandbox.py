"""Run a kernel's script with read-only inputs and without network; started as a script by `rehearse`.

    python sandbox.py SCRIPT --read-only DIR       inside `unshare --user --map-root-user --net --mount`
    python sandbox.py SCRIPT --block-sockets       where namespaces are not allowed

It imports nothing of kaggle_kit: the kernel must find its own.
"""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

MESSAGE = "rehearsal: the submission kernel has no network"


def main(arguments: list[str]) -> None:
    """Set up what the arguments ask for, then become the kernel."""
    script = arguments[0]
    if arguments[1] == "--read-only":
        _mount_read_only(Path(arguments[2]))
        os.execv(sys.executable, [sys.executable, "-u", script])  # noqa: S606
    _block_sockets()
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


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
