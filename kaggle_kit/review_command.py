"""`kaggle-kit review`: the page on which a person mends what an audit found."""

from __future__ import annotations

import argparse
import getpass
import secrets
import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import CHECK_FAILED, DONE, Result

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder


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
    parser.add_argument("--edits", type=Path, metavar="FILE", help="where decisions go (default: DIR/edits.jsonl)")
    parser.add_argument("--by", metavar="NAME", help="who decides (default: your user name here)")
    parser.add_argument(
        "--packed", type=Path, metavar="DIR", help="read train images from this packed store: faster for wide parquet"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    parser.add_argument("--no-browser", action="store_true", help="only show the address")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="no page; make one file of these")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --merge: the file to write")


def review(options: argparse.Namespace) -> tuple[Result, int]:
    """Open the page, or merge files."""
    from kaggle_kit.errors import SettingError

    if options.merge:
        if options.out is None or options.folder is not None:
            raise SettingError("--merge takes edits files and --out FILE, and no audit; see kaggle-kit review --help")
        return _merge(options.merge, options.out)
    if options.folder is None:
        raise SettingError("give the folder of an audit, or --merge FILE ... --out FILE")
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
        print(f"WARNING {about}: {first}; later {second}, which holds")
    return {"out": out, "contradictions": len(contradictions)}, CHECK_FAILED if contradictions else DONE


def _serve(options: argparse.Namespace) -> tuple[Result, int]:
    import uvicorn

    from kaggle_kit.audit.review.app import make_app
    from kaggle_kit.audit.review.desk import Desk

    by = getpass.getuser() if options.by is None else options.by
    desk = Desk(options.folder, edits=options.edits, by=by, packed=options.packed)
    token = secrets.token_urlsafe(24)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", options.port))
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}/?token={token}"
        for queue in desk.state()["queues"]:
            print(f"{queue['title']}: {queue['open']:,} open of {queue['count']:,}")
        print(f"decisions go to {desk.path}, at once; nothing else is written")
        print(f"the review page is at {address}\nCtrl-C ends it", flush=True)
        if not options.no_browser:
            webbrowser.open(address)
        app = make_app(desk, token, port=port)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
    decided = desk.state()
    print(f"\n{decided['decisions']:,} images decided in {desk.path}")
    return {"edits": desk.path, "decisions": decided["decisions"]}, DONE
