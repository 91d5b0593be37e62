"""`kaggle-kit runs`: list, note, share and adopt runs, and foresee a shake-up."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_kit.commands import DONE, Result
from kaggle_kit.errors import DataError, SettingError

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder, Command
    from kaggle_kit.entries import Entry
    from kaggle_kit.runs import Run
    from kaggle_kit.shakeup import Part

SUBCOMMANDS = ("list", "note", "merge", "export", "shake-up", "adopt")
_DEFAULT_FOLDER = "runs"
_PURPOSE = (
    "list runs by CV with their leaderboard scores; note those, merge teammates' ledgers, foresee a shake-up, adopt "
    "models from elsewhere"
)
_RUNS_HELP = "the folder that holds the run folders, one or two levels down"


def with_listing(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which `runs`, `runs DIR` and `runs --plot FILE` say `runs list`.

    A folder called like a subcommand is listed by `runs ./note`.
    """
    words = list(arguments)
    if words[:1] != ["runs"] or words[1:2] in (["-h"], ["--help"]):
        return words
    first = next((word for word in words[1:] if not word.startswith("-")), None)
    # two words in a row are no list: argparse refuses the first, mistyped one
    mistyped = [word for word in words[1:3] if not word.startswith("-")]
    if first in SUBCOMMANDS or (len(mistyped) == 2 and _closest(mistyped[0]) and not Path(mistyped[0]).is_dir()):
        return words
    return ["runs", "list", *words[1:]]


def _closest(word: str) -> str | None:
    return next(iter(difflib.get_close_matches(word, SUBCOMMANDS, n=1)), None)


def add_runs_parser(add: Adder) -> None:
    """Add `runs` and its subcommands."""
    runs = add("runs", list_runs, _PURPOSE, "kaggle-kit runs ./runs --plot cv.png")
    subparsers = runs.add_subparsers(metavar="WHAT", required=True, help="list is meant where none is given")

    def add_one(name: str, run: Command, purpose: str, example: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = subparsers.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            epilog=f"example:\n  {example}\n\nexit code: 0 done, 2 you can mend it",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # without defaults of their own: `runs --json note` means the same as `runs note --json`
        one.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one machine-readable line last"
        )
        one.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        one.set_defaults(run=run, parser=one)
        return one

    for add_some in (_add_list, _add_note, _add_sharing, _add_shakeup, _add_adopt):
        add_some(add_one)


def _add_list(add: Adder) -> None:
    listing = add(
        "list",
        list_runs,
        "list runs, best CV first, with changed settings and leaderboard scores, and say whether CV can be trusted",
        "kaggle-kit runs ./runs --plot cv.png",
    )
    listing.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(_DEFAULT_FOLDER),
        metavar="DIR",
        help=f"{_RUNS_HELP} (default: %(default)s)",
    )
    listing.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="also draw the leaderboard's scores over CV (CV alone while none is noted), as .png (default: no picture)",
    )


def _add_note(add: Adder) -> None:
    note = add(
        "note",
        note_run,
        "note what the leaderboard gave a run; what was noted earlier and is not given now stays",
        'kaggle-kit runs note runs/a --public 0.9812 --private 0.9633 --note "tta x4"',
    )
    note.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder; ledger.jsonl lies beside it")
    note.add_argument("--public", type=float, metavar="SCORE", help="as the public leaderboard shows it, like 0.9812")
    note.add_argument("--private", type=float, metavar="SCORE", help="as the private leaderboard shows it")
    note.add_argument("--note", metavar="TEXT", help="what to remember of it, in quotes")
    note.add_argument(
        "--clear",
        action="append",
        choices=("public", "private", "note"),
        help="take back what was noted of it, for teammates who merge too; give it again for another",
    )
    note.add_argument("--author", metavar="NAME", help="who notes it (default: the login name)")


def _add_sharing(add: Adder) -> None:
    merge = add(
        "merge",
        merge_ledgers,
        "add teammates' ledgers to DIR/ledger.jsonl; where two noted the same, the later one counts",
        "kaggle-kit runs merge runs anna.jsonl ben.jsonl",
    )
    merge.add_argument("folder", type=Path, metavar="DIR", help="holds your run folders and ledger.jsonl")
    merge.add_argument("ledgers", nargs="+", type=Path, metavar="LEDGER", help="files from `kaggle-kit runs export`")

    export = add(
        "export",
        export_ledger,
        "write all runs of a folder, noted or not, to one small file for teammates to merge",
        "kaggle-kit runs export runs --out anna.jsonl --author anna",
    )
    export.add_argument("folder", type=Path, metavar="DIR", help=_RUNS_HELP)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ledger to send, .jsonl")
    export.add_argument(
        "--author", metavar="NAME", help="whose the runs are of which nothing was noted (default: the login name)"
    )


def _add_shakeup(add: Adder) -> None:
    shakeup = add(
        "shake-up",
        foresee_shakeup,
        "estimate how far the ranking of runs moves between public and private, from their out-of-fold predictions",
        "kaggle-kit runs shake-up runs/a runs/b --public-images 90000 --private-images 110000 --private-unseen 0.2",
    )
    shakeup.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of one task")
    for part in ("public", "private"):
        shakeup.add_argument(
            f"--{part}-images", type=int, required=True, metavar="N", help=f"images the {part} leaderboard scores"
        )
        shakeup.add_argument(
            f"--{part}-unseen",
            type=float,
            metavar="SHARE",
            help=f"share (0 to 1, not percent) of the {part} images whose combination of heads train does not show "
            "(default: as among the images of the first run's folds)",
        )
    shakeup.add_argument("--draws", type=int, default=300, metavar="N", help="drawn tests (default: %(default)s)")
    shakeup.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)")
    shakeup.add_argument("--out", type=Path, metavar="FILE", help="also draw it, as .png (default: no picture)")


def _add_adopt(add: Adder) -> None:
    from kaggle_kit.export.adopt_options import EXAMPLE, PURPOSE, add_adopt_options

    add_adopt_options(add("adopt", adopt_models, PURPOSE, EXAMPLE))


def list_runs(options: argparse.Namespace) -> tuple[Result, int]:
    """List runs."""
    from kaggle_kit.entries import by_task
    from kaggle_kit.files import check_output_file
    from kaggle_kit.ledger import read_runs
    from kaggle_kit.standings import NO_SCORE, changed_settings, format_ledger, plot_ledger, scored_of
    from kaggle_kit.trust import different_folds, trust

    if options.plot:
        check_output_file(options.plot, ".png")
    _check_folder(options.folder)
    listing = read_runs(options.folder)
    _show(format_ledger(listing.entries, gone=listing.gone))
    tasks: list[dict[str, Any]] = []
    problems = list(listing.problems)
    groups = by_task(listing.entries)
    for group in groups:
        answers = [trust(group, "public"), trust(group, "private")]
        several = len(groups) > 1
        _show(f"{group[0].task}, " * several + answer.text for answer in answers if answer.num_runs)
        problems += [f"{group[0].task}: " * several + problem for problem in different_folds(group)]
        tasks.append({"task": group[0].task, "changed": changed_settings(group), "trust": answers})
    _warn(problems)
    if options.plot:
        plot_ledger(listing.entries, options.plot)
        drawn = "leaderboard scores over CV" if scored_of(listing.entries) else f"CV alone; {NO_SCORE}"
        _show([f"{options.plot}: {drawn}"])
    return {
        "runs": [entry for group in groups for entry in group],
        "gone": sorted(listing.gone),
        "tasks": tasks,
        "problems": problems,
        "plot": options.plot,
    }, DONE


def _check_folder(folder: Path) -> None:
    """Refuse a word that is neither a folder nor a subcommand."""
    word = str(folder)
    if os.sep in word or word == _DEFAULT_FOLDER or folder.exists():
        return  # `read_runs` says what is wrong with it
    close = _closest(word)
    hint = f"did you mean `{close}`?" if close else f"give a folder of runs, or one of {', '.join(SUBCOMMANDS)}"
    raise DataError(f"there is no folder {word!r}, and no `kaggle-kit runs {word}`; {hint}")


def note_run(options: argparse.Namespace) -> tuple[Result, int]:
    """Note a run's leaderboard scores."""
    from kaggle_kit.ledger import ledger_of, note_run, read_ledger

    ledger = ledger_of(options.run_folder)
    before = {known.run_id: known for known in read_ledger(ledger).entries} if options.clear else {}
    entry = note_run(
        options.run_folder,
        public=options.public,
        private=options.private,
        note=options.note,
        clear=options.clear or (),
        author=options.author,
    )
    taken_back = {key: getattr(before[entry.run_id], key) for key in dict.fromkeys(options.clear or ())}
    _show([f"{entry.name}: {', '.join([f'CV {entry.total:.4f}', *_noted(entry)])}"])
    if taken_back:
        values = [f'note "{value}"' if key == "note" else f"{key} {value:.4f}" for key, value in taken_back.items()]
        _show([f"taken back: {', '.join(values)}"])
    _show([f"noted in {ledger}"])
    return {"ledger": ledger, "run": entry, "taken_back": taken_back}, DONE


def _noted(entry: Entry) -> list[str]:
    """Return what was noted of a run: scores, with how far they lie from CV, and the note."""
    scores = [
        f"{board} {value:.4f} ({value - entry.total:+.4f})"
        for board, value in (("public", entry.public), ("private", entry.private))
        if value is not None
    ]
    return [*scores, *[f'"{entry.note}"'] * bool(entry.note)]


def merge_ledgers(options: argparse.Namespace) -> tuple[Result, int]:
    """Merge teammates' ledgers."""
    from kaggle_kit.ledger import FILE, merge_ledgers

    into = options.folder / FILE
    merged = merge_ledgers(into, options.ledgers)
    _show([f"{into}: {merged.added} run(s) added, {merged.updated} updated, {merged.unchanged} unchanged"])
    _warn(merged.problems)
    return {"ledger": into, "merged": merged}, DONE


def export_ledger(options: argparse.Namespace) -> tuple[Result, int]:
    """Write a ledger for teammates."""
    from kaggle_kit.files import check_output_file
    from kaggle_kit.ledger import FILE, write_ledger

    check_output_file(options.out, ".jsonl")
    listing = write_ledger(options.folder, options.out, author=options.author)
    _show(
        [
            f"{options.out}: {len(listing.entries)} run(s), {options.out.stat().st_size:,} bytes",
            f"a teammate adds them to DIR/{FILE}: kaggle-kit runs merge DIR {options.out.name}",
        ]
    )
    _warn(listing.problems)
    return {"out": options.out, "runs": listing.entries, "problems": listing.problems}, DONE


def foresee_shakeup(options: argparse.Namespace) -> tuple[Result, int]:
    """Estimate a shake-up."""
    from kaggle_kit.files import check_output_file
    from kaggle_kit.runs import read_run
    from kaggle_kit.shakeup.of_runs import shakeup_of_runs
    from kaggle_kit.shakeup.report import advise, format_shakeup, outlooks, plot_shakeup

    if options.out:
        check_output_file(options.out, ".png")
    _check_shakeup(options)
    runs = [read_run(folder) for folder in options.runs]
    public, private = _parts(options, runs[0])
    shakeup = shakeup_of_runs(runs, public=public, private=private, draws=options.draws, seed=options.seed)
    _show(format_shakeup(shakeup))
    if options.out:
        plot_shakeup(shakeup, options.out)
        _show([f"{options.out}: the shake-up"])
    return {
        "choice": shakeup.choice,
        "sentence": advise(shakeup),
        "runs": outlooks(shakeup),
        "notes": shakeup.notes,
        "out": options.out,
    }, DONE


def _check_shakeup(options: argparse.Namespace) -> None:
    """Refuse what cannot be drawn, in the words of the command line."""
    lowest = (
        ("--public-images", options.public_images, 1),
        ("--private-images", options.private_images, 1),
        ("--draws", options.draws, 1),
        ("--seed", options.seed, 0),
    )
    for flag, number, least in lowest:
        if number < least:
            raise SettingError(f"{flag} is {number}; give {least} or more")
    for flag, share in (("--public-unseen", options.public_unseen), ("--private-unseen", options.private_unseen)):
        if share is not None and not 0 <= share <= 1:
            raise SettingError(f"{flag} is {share}; give a share from 0 to 1, not percent")


def _parts(options: argparse.Namespace, run: Run) -> tuple[Part, Part]:
    """Return the public and the private part; shares that are not given are those of the run's folds."""
    from kaggle_kit.shakeup import Part

    shares = [options.public_unseen, options.private_unseen]
    if None in shares:
        share = _unseen_share(run)
        shares = [share if given is None else given for given in shares]
    return (
        Part(num_images=options.public_images, unseen_share=shares[0]),
        Part(num_images=options.private_images, unseen_share=shares[1]),
    )


def _unseen_share(run: Run) -> float:
    """Return the share of the run's out-of-fold images whose combination of heads its folds do not train."""
    import numpy as np

    folds = run.fold_table()
    return float(folds.unseen[np.isin(folds.fold, list(run.folds))].mean())


def adopt_models(options: argparse.Namespace) -> tuple[Result, int]:
    """Make a run of models from elsewhere."""
    from kaggle_kit.export.adopt import format_adoption, read_adoption
    from kaggle_kit.export.adopt_options import adopt_by_options
    from kaggle_kit.scores import format_scores

    run = adopt_by_options(options)
    adoption = read_adoption(run)
    _show(format_adoption(adoption))
    _show(format_scores({"out of fold": run.scores}))
    _show([f"{run.folder}: adopted; next: kaggle-kit blend {run.folder} RUN ... --out blend.json"])
    return {
        "out": run.folder,
        "run": run.id,
        "score": run.score,
        "reading": adoption.reading,
        "checked": adoption.checked,
    }, DONE


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _warn(problems: Iterable[str]) -> None:
    _show(f"WARNING {problem}" for problem in problems)
