"""`kaggle-kit kernel`, `publish` and `submit`: what goes to Kaggle, through the official `kaggle` package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import CHECK_FAILED, DONE, Result

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder, Command
    from kaggle_kit.platform.client import Client
    from kaggle_kit.platform.metadata import KernelMetadata

_DRY_RUN = "show every call and the files that would go, and make none; needs no account"


def add_kaggle_parsers(add: Adder) -> None:
    """Add `kernel`, `publish` and `submit`."""
    _add_kernel(add)
    publish = add(
        "publish",
        publish_folder,
        "create a Kaggle dataset of a folder, or a new version where its content changed, and wait until it is ready",
        "kaggle-kit publish ./bundle --id YOU/my-bundle --dry-run\n"
        '  kaggle-kit publish ./bundle --kernel ./my_submission --message "two more runs"',
    )
    publish.add_argument("folder", type=Path, metavar="DIR", help="with dataset-metadata.json, or give --id")
    publish.add_argument(
        "--id", metavar="OWNER/SLUG", help="where DIR has no dataset-metadata.json: write one, of this name"
    )
    publish.add_argument("--title", help="with --id: 6 to 50 characters (default: the slug's words)")
    publish.add_argument("--message", default="", metavar="TEXT", help="of the new version")
    publish.add_argument("--public", action="store_true", help="everybody may see it (default: private)")
    publish.add_argument(
        "--replace", action="store_true", help="also a dataset that this kit did not publish: its files go"
    )
    publish.add_argument(
        "--kernel", type=Path, metavar="KERNEL_DIR", help="check that this kernel will get that version"
    )
    publish.add_argument("--dry-run", action="store_true", help=_DRY_RUN)

    submit = add(
        "submit",
        submit_to_competition,
        "push a kernel, wait, submit that very version to the code competition once, wait for its scores, note them",
        "kaggle-kit submit ./my_submission --task bengali --run runs/resnet18\n"
        "  kaggle-kit submit ./my_submission --competition bengaliai-cv19 --dry-run",
    )
    submit.add_argument("folder", type=Path, metavar="KERNEL_DIR", help="made by `kaggle-kit kernel new`")
    which = submit.add_mutually_exclusive_group()
    which.add_argument("--task", metavar="TASK", help="its name is the competition's slug")
    which.add_argument("--competition", metavar="SLUG", help="default: the one that the kernel attaches")
    submit.add_argument("--run", dest="run_folder", type=Path, metavar="RUN", help="note the scores of this run")
    submit.add_argument("--version", type=int, metavar="N", help="submit this version, pushed before; push nothing")
    submit.add_argument("--file", default="submission.csv", help="what the kernel writes (default: %(default)s)")
    submit.add_argument("--message", default="", metavar="TEXT", help="shown beside the submission")
    submit.add_argument("--accelerator", metavar="ID", help="such as NvidiaTeslaT4 (default: the metadata's)")
    submit.add_argument("--dry-run", action="store_true", help=_DRY_RUN)


def _add_kernel(add: Adder) -> None:
    kernel = add(
        "kernel",
        _no_verb,
        "make a kernel from a template, check it, push it, look after it",
        "kaggle-kit kernel new submit ./my_submission --owner YOU --competition bengaliai-cv19\n"
        "  kaggle-kit kernel check ./my_submission\n"
        "  kaggle-kit kernel push ./my_submission --wait\n"
        "  kaggle-kit kernel output YOU/kaggle-kit-bench --out ./bench",
    )
    verbs = kernel.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: Command, purpose: str, example: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = verbs.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            epilog=f"example:\n  {example}\n\nexit code: 0 done, 1 the check it makes failed, 2 you can mend it",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for switch, text in (("--json", "print one machine-readable line last"), ("--debug", "show the traceback")):
            one.add_argument(switch, action="store_true", default=argparse.SUPPRESS, help=text)
        one.set_defaults(run=run, parser=one)
        return one

    _add_making(verb)
    for name, run, purpose, more in (
        ("status", show_status, "say how a kernel's newest session stands", ""),
        ("logs", show_logs, "print what a kernel printed", ""),
        ("output", take_output, "download what a kernel wrote", " --out ./bench"),
    ):
        one = verb(name, run, purpose, f"kaggle-kit kernel {name} YOU/kaggle-kit-bench{more}")
        one.add_argument("ref", metavar="OWNER/SLUG", help="as in its address, or the kernel's folder")
        if name == "output":
            one.add_argument("--out", type=Path, required=True, metavar="DIR", help="files of the same names go")


def _add_making(verb: Adder) -> None:
    new = verb(
        "new",
        make_kernel,
        "make a kernel's folder from a template, with names in place of OWNER and COMPETITION",
        "kaggle-kit kernel new submit ./my_submission --owner YOU --competition bengaliai-cv19 --notebook",
    )
    new.add_argument("template", metavar="TEMPLATE", help="submit, train, bench or build_engine")
    new.add_argument("folder", type=Path, metavar="KERNEL_DIR", help="absent or empty")
    new.add_argument("--owner", required=True, metavar="NAME", help="your user name on Kaggle")
    new.add_argument("--competition", metavar="SLUG", help="as in its address")
    new.add_argument("--title", help="its words, joined by -, become the kernel's address (default: the template's)")
    new.add_argument("--notebook", action="store_true", help="the same code as a notebook's cells")
    new.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="OWNER/SLUG",
        help="attached in place of the template's; repeat",
    )
    check = verb(
        "check",
        check_folder,
        "name every reason not to push: metadata, code, internet, secrets; offline",
        "kaggle-kit kernel check ./my_submission",
    )
    push = verb(
        "push",
        push_folder,
        "check, push, and with --wait, wait until its session has ended",
        "kaggle-kit kernel push ./my_submission --wait",
    )
    for one in (check, push):
        one.add_argument("folder", type=Path, metavar="KERNEL_DIR")
        one.add_argument("--internet", action="store_true", help="it may use the internet: no submission kernel")
    push.add_argument("--accelerator", metavar="ID", help="such as NvidiaTeslaT4 (default: the metadata's)")
    push.add_argument("--wait", action="store_true", help="exit code 1 where the session fails")
    push.add_argument("--dry-run", action="store_true", help=_DRY_RUN)


def _no_verb(_options: argparse.Namespace) -> tuple[Result, int]:
    raise AssertionError("argparse demands a verb")


def make_kernel(options: argparse.Namespace) -> tuple[Result, int]:
    """Make a kernel's folder."""
    from kaggle_kit.platform.kernels import new_kernel

    made = new_kernel(
        options.template,
        options.folder,
        owner=options.owner,
        competition=options.competition,
        title=options.title,
        notebook=options.notebook,
        datasets=options.dataset,
    )
    print(f"{options.folder}: kernel {made.ref}, {made.kernel_type}, {made.machine_shape or 'CPU'}")
    for source in (*made.datasets, *made.competitions):
        print(f"  attaches {source}")
    print(f"next: kaggle-kit kernel check {options.folder}")
    return {"folder": options.folder, "id": made.ref}, DONE


def check_folder(options: argparse.Namespace) -> tuple[Result, int]:
    """Check a kernel's folder, offline."""
    from kaggle_kit.platform.kernels import check_kernel

    problems = check_kernel(options.folder, internet=options.internet)
    for problem in problems:
        print(f"WRONG {problem}")
    if not problems:
        print(f"{options.folder}: nothing is wrong with it; whether its datasets are ready is asked when it is pushed")
    return {"folder": options.folder, "problems": problems}, CHECK_FAILED if problems else DONE


def push_folder(options: argparse.Namespace) -> tuple[Result, int]:
    """Push a kernel."""
    from kaggle_kit.platform.kernels import push_kernel, wait_for_kernel
    from kaggle_kit.platform.metadata import read_kernel

    kernel = read_kernel(options.folder)
    client = _client(options, owner=kernel.ref.split("/")[0], absent=kernel.ref)
    pushed = push_kernel(options.folder, client, say=_say, accelerator=options.accelerator, internet=options.internet)
    result: dict[str, object] = {"id": kernel.ref, "version": pushed.version, "url": pushed.url}
    if options.dry_run:
        print(f"{kernel.ref}: a dry run, nothing was pushed")
    if options.dry_run or not options.wait:
        return result, DONE
    ended = wait_for_kernel(kernel.ref, client, version=pushed.version, say=_say)
    if ended.phase != "complete":
        print(f"{kernel.ref}: {ended.message or 'no reason given'}; read it by `kaggle-kit kernel logs {kernel.ref}`")
    return {**result, "phase": ended.phase}, DONE if ended.phase == "complete" else CHECK_FAILED


def show_status(options: argparse.Namespace) -> tuple[Result, int]:
    """Say how a kernel stands."""
    from kaggle_kit.errors import KaggleError

    ref = _ref(options.ref)
    state = _connected().find_kernel(ref)
    if state is None:
        raise KaggleError(f"there is no kernel {ref}, or you cannot see it; give owner/slug as in its page's address")
    print(f"{ref}: {state.phase}{f': {state.message}' if state.message else ''}")
    return {"id": ref, "phase": state.phase, "message": state.message}, (
        CHECK_FAILED if state.phase in ("error", "cancelled") else DONE
    )


def show_logs(options: argparse.Namespace) -> tuple[Result, int]:
    """Print a kernel's log."""
    ref = _ref(options.ref)
    log = _connected().kernel_log(ref)
    print(log.rstrip() or f"{ref} has printed nothing yet")
    return {"id": ref, "log": log}, DONE


def take_output(options: argparse.Namespace) -> tuple[Result, int]:
    """Download a kernel's output."""
    from kaggle_kit.platform.kernels import fetch_output

    paths = fetch_output(_ref(options.ref), _connected(), options.out)
    for path in paths:
        print(path)
    print(f"{options.out}: {len(paths):,} file(s)")
    return {"out": options.out, "files": paths}, DONE


def publish_folder(options: argparse.Namespace) -> tuple[Result, int]:
    """Publish a folder as a dataset."""
    from kaggle_kit.platform.metadata import read_dataset
    from kaggle_kit.platform.publish import publish
    from kaggle_kit.platform.rules import DATASET_METADATA

    written = options.id is not None and _write_metadata(options.folder, options.id, options.title)
    try:
        ref = read_dataset(options.folder).ref
        change = publish(
            options.folder,
            _client(options, owner=ref.split("/")[0], absent=ref),
            say=_say,
            message=options.message,
            public=options.public,
            replace=options.replace,
            kernel=options.kernel,
        )
    finally:
        if written and options.dry_run:
            (options.folder / DATASET_METADATA).unlink()
    if options.dry_run:
        print(f"{ref}: a dry run, nothing was uploaded")
        return {"id": ref, "did": "nothing", "content": change.publication.content}, DONE
    version = change.publication.version
    what = {"created": "was created", "versioned": "has a new version", "unchanged": "is there already, unchanged"}
    print(f"{ref} {what[change.did]}{f', version {version}' if version else ''}; kernels that start now get it")
    return {"id": ref, "did": change.did, "version": version, "content": change.publication.content}, DONE


def submit_to_competition(options: argparse.Namespace) -> tuple[Result, int]:
    """Submit a kernel to a code competition."""
    from kaggle_kit.ledger import note_run
    from kaggle_kit.platform.competition_submit import submit_kernel
    from kaggle_kit.platform.metadata import read_kernel
    from kaggle_kit.runs import read_run

    if options.run_folder:
        read_run(options.run_folder)  # refuses now what could not be noted after hours
    kernel = read_kernel(options.folder, internet=False)
    competition = _competition(options, kernel)
    outcome = submit_kernel(
        options.folder,
        _client(options, owner=kernel.ref.split("/")[0], absent=kernel.ref),
        competition=competition,
        say=_say,
        version=options.version,
        file=options.file,
        message=options.message,
        accelerator=options.accelerator,
        dry_run=options.dry_run,
    )
    boards = {"public": outcome.public, "private": outcome.private}
    result = {"competition": competition, "version": outcome.version, "submission": outcome.number, **boards}
    if options.dry_run:
        print(f"{competition}: a dry run, nothing was submitted")
        return result, DONE
    if outcome.failure:
        print(f"FAILED {outcome.failure}")
        return {**result, "failure": outcome.failure}, CHECK_FAILED
    shown = ", ".join(f"{board} {score:.5f}" for board, score in boards.items() if score is not None)
    print(f"{competition}: {shown or 'complete, and Kaggle shows no score yet; call this again for it'}")
    if options.run_folder and shown:
        note_run(options.run_folder, public=outcome.public, private=outcome.private, note=options.message or None)
        print(f"noted of {options.run_folder}; kaggle-kit runs lists it")
    elif shown:
        print("next: kaggle-kit runs note RUN --public ... (or --run RUN here, which does it)")
    return result, DONE


def _competition(options: argparse.Namespace, kernel: KernelMetadata) -> str:
    """Return the competition's slug: as given, the task's name, or the only one that the kernel attaches."""
    from kaggle_kit.errors import KaggleError
    from kaggle_kit.task import read_task

    if options.task or options.competition:
        return str(options.competition or read_task(options.task).name)
    if len(kernel.competitions) != 1:
        raise KaggleError(f"{options.folder} attaches {len(kernel.competitions)} competitions; say --competition SLUG")
    return kernel.competitions[0]


def _client(options: argparse.Namespace, *, owner: str, absent: str) -> Client:
    """Return the client: one that only shows where that is asked for; `absent` is pretended not to be a dataset yet."""
    if options.dry_run:
        from kaggle_kit.platform.dry_run import DryRun

        return DryRun(_say, owner=owner, datasets={absent: None})
    return _connected()


def _connected() -> Client:
    from kaggle_kit.platform.client import connect

    return connect()


def _ref(text: str) -> str:
    """Return owner/slug, of a kernel's folder too."""
    from kaggle_kit.errors import KaggleError
    from kaggle_kit.platform.metadata import read_kernel
    from kaggle_kit.platform.rules import KERNEL_METADATA

    if (Path(text) / KERNEL_METADATA).is_file():
        return read_kernel(Path(text)).ref
    if text.count("/") != 1 or not all(text.split("/")):
        raise KaggleError(f"{text!r} names no kernel; give OWNER/SLUG as in its page's address, or its folder")
    return text


def _write_metadata(folder: Path, ref: str, title: str | None) -> bool:
    """Write dataset-metadata.json where there is none, and return whether it did; one of another name is refused."""
    from kaggle_kit.errors import KaggleError
    from kaggle_kit.files import replacing
    from kaggle_kit.platform.metadata import read_dataset
    from kaggle_kit.platform.rules import DATASET_METADATA

    path = folder / DATASET_METADATA
    if not folder.is_dir():
        raise KaggleError(f"there is no folder {str(folder)!r} to publish")
    if path.is_file():
        known = read_dataset(folder).ref
        if known != ref:
            raise KaggleError(f"{path} says {known!r}, and --id {ref!r}; leave --id out, or change the file")
        return False
    values = {
        "title": title or ref.partition("/")[2].replace("-", " "),
        "id": ref,
        "licenses": [{"name": "other"}],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    try:
        read_dataset(folder)
    except KaggleError:  # of the names given here, so nothing to keep
        path.unlink()
        raise
    return True


def _say(line: str) -> None:
    print(line, flush=True)
