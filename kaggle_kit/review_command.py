"""`kaggle-kit review`: the page on which a person mends what an audit found."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import CHECK_FAILED, DONE, Result

if TYPE_CHECKING:
    from kaggle_kit.audit.review.desk import Desk
    from kaggle_kit.cli import Adder

GRACE_S = 2  # for requests under way, after Ctrl-C


def add_review_parser(add: Adder) -> None:
    """Add `review`."""
    parser = add(
        "review",
        review,
        "open the page on which label issues, top losses, duplicates and odd images are relabelled, dropped or kept; "
        "or merge two people's decisions",
        "kaggle-kit review audit\n"
        "  kaggle-kit folds ships ./ships/data --out folds.parquet --edits audit/edits.jsonl --audit audit\n"
        "  kaggle-kit review --merge ann.jsonl bob.jsonl --out edits.jsonl",
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="made by `kaggle-kit audit`")
    parser.add_argument(
        "--edits", type=Path, metavar="FILE", help="where decisions go, each at once (default: DIR/edits.jsonl)"
    )
    parser.add_argument(
        "--by", metavar="NAME", help="who decides, and whose decisions Undo takes back (default: your user name here)"
    )
    parser.add_argument(
        "--packed", type=Path, metavar="DIR", help="read train images from this packed store (default: the files)"
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="on this machine's 127.0.0.1 (default: a free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only show the address")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="no page; make one file of these")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="with --merge: the file to write; a new one, or one of them"
    )


def review(options: argparse.Namespace) -> tuple[Result, int]:
    """Open the page, or merge files."""
    from kaggle_kit.errors import SettingError

    if options.merge:
        if options.out is None or options.folder is not None:
            raise SettingError("--merge takes edits files and --out FILE, and no audit; see kaggle-kit review --help")
        return _merge(options.merge, options.out)
    if options.folder is None:
        raise SettingError("give the folder of an audit, or --merge FILE ... --out FILE")
    if options.out is not None:
        raise SettingError("--out goes with --merge; where decisions of the page go is said by --edits FILE")
    return _serve(options)


def _merge(paths: list[Path], out: Path) -> tuple[Result, int]:
    from kaggle_kit.edits import merge_edits, read_edits
    from kaggle_kit.runtime.progress import print_line

    contradictions = merge_edits(paths, out, say=print_line)
    print(f"{out}: {len(read_edits(out)):,} decisions of {len(paths)} files")
    for one in contradictions:
        about = f"head {one.head!r} of {one.id!r}" if one.head else repr(one.id)
        first, second = (
            f"{edit.by or 'somebody'}: {edit.action} {edit.value}".rstrip() for edit in (one.first, one.second)
        )
        print(f"WARNING {about}: {first}; {second}; with both it is {one.outcome}")
    return {"out": out, "contradictions": len(contradictions)}, CHECK_FAILED if contradictions else DONE


def _serve(options: argparse.Namespace) -> tuple[Result, int]:
    """Serve the page until Ctrl-C, and say what was decided."""
    _check_installed()
    from kaggle_kit.audit.review.opening import open_desk

    with _listening(options.port) as listener:
        by = _user_name() if options.by is None else options.by
        desk = open_desk(options.folder, edits=options.edits, by=by, packed=options.packed)
        before = desk.state()
        for queue in before["queues"]:
            print(f"{queue['title']}: {queue['open']:,} open of {queue['count']:,}")
        if not before["queues"]:
            print("the audit found nothing to decide; `kaggle-kit audit --oof RUN` looks for wrong labels, too")
        print(f"decisions of {by or 'nobody'} go to {desk.path}, each at once; the data's own files stay as they are")
        _run(desk, listener, open_browser=not options.no_browser)
    desk.pictures.close()
    decided = desk.state()
    left = sum(queue["open"] for queue in decided["queues"])
    print(f"{decided['decisions']:,} image(s) decided in {desk.path}; {left:,} still open")
    return {"edits": desk.path, "decisions": decided["decisions"], "open": left}, DONE


def _run(desk: Desk, listener: socket.socket, *, open_browser: bool) -> None:
    """Serve a desk until Ctrl-C."""
    import uvicorn

    from kaggle_kit.audit.review.app import make_app

    token, port = secrets.token_urlsafe(24), listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/?token={token}"
    print(f"the page is at\n  {address}\nCtrl-C ends it; nothing is lost", flush=True)
    if open_browser and _has_screen():
        webbrowser.open(address)
    config = uvicorn.Config(
        make_app(desk, token, port=port),
        lifespan="off",
        ws="none",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in order, and raises it again
        uvicorn.Server(config).run(sockets=[listener])


def _check_installed() -> None:
    from importlib.util import find_spec

    from kaggle_kit.errors import SettingError

    lacking = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if lacking:
        raise SettingError(f"the review page needs {' and '.join(lacking)}; pip install 'kaggle_kit[audit]'")


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens on loopback, so that a browser may come before the page is ready."""
    from kaggle_kit.errors import SettingError

    if port != 0 and not 1024 <= port <= 65535:
        raise SettingError(f"--port is {port}; expected 1024 to 65535, or leave it out for a free one")
    with socket.socket() as listener:
        if sys.platform != "win32":  # there it would let two processes listen at once
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingError(
                f"port {port} cannot be had ({error.strerror or error}); another review may be open there: give "
                "another --port, or leave it out for a free one"
            ) from None
        listener.listen()
        yield listener


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return ""


def _has_screen() -> bool:
    """Return whether a browser can show itself; without a screen one may take over the terminal."""
    return sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
