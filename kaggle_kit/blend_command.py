"""`kaggle-kit blend`: choose how runs become one prediction, within what the kernel has time for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_kit.commands import DONE, Result
from kaggle_kit.errors import KitError, SettingError

if TYPE_CHECKING:
    from kaggle_kit.blending import Budget, FittedBlend
    from kaggle_kit.blending.costs import Costs
    from kaggle_kit.blending.strategies import Strategy
    from kaggle_kit.cli import Adder
    from kaggle_kit.runs import Run
    from kaggle_kit.shift_effect import ShiftEffect

METHODS = (
    *("best", "mean", "vote", "geometric", "power", "rank", "subset", "convex", "greedy", "search", "greedy-geometric"),
    *("calibrated", "calibrated-greedy", "ridge", "stack", "stack-heads"),
)
HERE, NONE = "here", "none"


def add_blend_parser(add: Adder) -> None:
    """Add `blend`."""
    one = add(
        "blend",
        blend,
        "choose how runs become one prediction, within what the kernel has time for",
        "kaggle-kit blend runs/a runs/b runs/c --out blend.json\n"
        "  kaggle-kit blend runs/* --out blend.json --budget 2 --images 200000 --costs costs.json",
    )
    one.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; fold models share their run's weight"
    )
    one.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the blend, JSON; a page beside it shows why",
    )
    one.add_argument(
        "--method",
        choices=("auto", *METHODS),
        default="auto",
        help="auto: head by head the simplest that no other beats in three of four resamples of images that it was not "
        "fitted on, without runs that add nothing; or one way for all heads and runs: best and mean (a run alone, all "
        "alike), other means, the best subset, weights (convex: log loss, greedy, search: the metric), calibrated "
        "before, models of the probabilities (ridge, stack) (default: %(default)s)",
    )
    one.add_argument(
        "--decision",
        choices=("auto", "argmax"),
        default="auto",
        help="auto: rules that suit the metric better than the highest probability, where they gain out of fold beyond "
        "luck; argmax: none (default: %(default)s)",
    )
    one.add_argument(
        "--prior-shift",
        type=_shift,
        metavar="auto|always",
        nargs="?",
        const="auto",
        help="let the kernel estimate the test's class shares and correct for them (EM, Saerens 2002); shows what that "
        "does to out-of-fold images of several class shares, and leaves it out where it helps nowhere, unless `always`",
    )
    _add_budget(one)
    one.add_argument("--verbose", action="store_true", help="print more of what the page shows")


def _add_budget(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--budget",
        type=_hours,
        metavar="HOURS",
        help="the time the networks of all runs together may take in the kernel, like 2 or 1.5, reading images aside; "
        "leaves out runs where not all fit",
    )
    one.add_argument("--images", type=int, metavar="N", help="with --budget: how many the hidden test has")
    one.add_argument(
        "--costs",
        default=HERE,
        metavar="FILE",
        help="what each run takes, measured on the accelerator; `here`: measure it on this machine, which only tells "
        "runs apart; `none`: do not (default: %(default)s)",
    )
    one.add_argument(
        "--soup",
        type=Path,
        metavar="DIR",
        help="first average the weights of those runs of one architecture that make the average better (greedy soup), "
        "as runs DIR/soup_NAME, one for each architecture with equal settings, and offer them to the blend",
    )
    one.add_argument(
        "--common", action="store_true", help="leave out images that some run does not predict, rather than stop"
    )


def _shift(text: str) -> str:
    if text not in ("auto", "always"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither auto nor always; write --prior-shift=auto, or put --prior-shift after the runs"
        )
    return text


def _hours(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours; write it like 2 or 0.5") from None


def blend(options: argparse.Namespace) -> tuple[Result, int]:
    """Choose a blend, say how, and write it with its page."""
    from kaggle_kit.blending import Budget, fit_blend, foresee_prior_shift, with_diversity
    from kaggle_kit.blending.pool import make_pool
    from kaggle_kit.blending.report import write_blend_report
    from kaggle_kit.ensemble import save_blend
    from kaggle_kit.files import check_output_file

    check_output_file(options.out, ".json")
    if (options.budget is None) != (options.images is None):
        raise SettingError("--budget and --images go together: --budget 2 --images 200000 is two hours for 200,000")
    if options.budget is not None and options.costs == NONE:
        raise SettingError("--budget needs to know what runs cost; leave --costs none out, or give a file")
    budget = None if options.budget is None else Budget(hours=options.budget, images=options.images)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = _read_runs(options.runs)
    pool = make_pool(runs, common_only=options.common)  # what does not fit together is refused before anything is timed
    costs = _costs(options.costs, runs, needed=budget is not None)
    if options.soup is not None:
        runs, costs = _soups(runs, options.soup, costs)
        pool = make_pool(runs, common_only=options.common)
    strategies: Sequence[Strategy] | None = None if options.method == "auto" else (options.method,)
    found = fit_blend(
        runs,
        fit_rules=options.decision == "auto",
        prior_shift=options.prior_shift is not None,
        strategies=strategies,
        budget=budget,
        costs=costs,
        pool=pool,
    )
    if len(found.blend.runs) > 1:
        found = with_diversity(found)
    print("\n\n".join("\n".join(section) for section in _sections(found, budget, verbose=options.verbose)) + "\n")
    effects = foresee_prior_shift(found) if options.prior_shift else []
    found = _settle_prior_shift(options, found, effects)
    page = write_blend_report(options.out.with_suffix(".html"), task=pool.task, fitted=found, budget=budget)
    save_blend(found.blend, options.out)
    _print_outcome(options.out, found, page, {run.name: run.folder for run in runs})
    return _result(options.out, page, found, effects), DONE


def _read_runs(folders: Sequence[Path]) -> list[Run]:
    from kaggle_kit.runs import read_run

    resolved = [folder.resolve() for folder in folders]
    for folder, one in zip(folders, resolved, strict=True):
        if resolved.count(one) > 1:
            raise SettingError(f"run {str(folder)!r} is given {resolved.count(one)} times; name each run once")
    return [read_run(folder) for folder in folders]


def _soups(runs: Sequence[Run], out: Path, costs: Costs | None) -> tuple[list[Run], Costs | None]:
    """Return runs and costs, with a soup of each group that can be averaged; none where that helps no run.

    A soup costs what its best ingredient does.
    """
    from kaggle_kit.blending.ingredients import describe_alone, group_ingredients, name_soups
    from kaggle_kit.blending.soup import format_soup, make_soup

    groups = group_ingredients(runs)
    alone = describe_alone(groups)
    several = [group for group in groups if len(group) > 1]
    if not several:
        found = "; ".join(alone[:3]) + (f"; and {len(alone) - 3} more" if len(alone) > 3 else "")
        raise SettingError(
            "--soup averages runs of one architecture with equal settings, folds and images, and no two of the "
            f"{len(runs)} given are: {found or 'each was trained on everything or comes from elsewhere'}; train them "
            "alike, or leave --soup out"
        )
    for sentence in alone:
        print(f"not averaged: {sentence}")
    made = []
    for name, group in zip(name_soups(several), several, strict=True):
        made.append(make_soup(group, out / name))
        print("\n".join(format_soup(made[-1])))
    made = [soup for soup in made if soup.is_written]
    if costs is not None:
        own = {soup.run.name: costs.seconds[soup.members[0]] for soup in made}
        costs = dataclasses.replace(costs, seconds={**costs.seconds, **own})
    return [*runs, *(soup.run for soup in made)], costs


def _costs(given: str, runs: Sequence[Run], *, needed: bool) -> Costs | None:
    """Return what runs cost, from a file or measured; where that cannot be had and is not needed, say why and go on."""
    from kaggle_kit.blending.costs import measure_costs, read_costs

    if given == NONE:
        return None
    if given != HERE:
        return read_costs(Path(given), [run.name for run in runs])
    if len(runs) == 1 and not needed:
        return None
    try:
        return measure_costs(runs)
    except KitError as error:
        if needed:
            raise
        print(f"what runs cost is not known: {error}")
        return None


def _sections(found: FittedBlend, budget: Budget | None, *, verbose: bool) -> list[list[str]]:
    """Return what is said of a choice, a list of lines a table; the page has all of it."""
    from kaggle_kit.blending.diversity import format_diversity
    from kaggle_kit.blending.frontier import format_frontier
    from kaggle_kit.blending.tables import format_order, format_runs, format_steps, format_weights
    from kaggle_kit.decision_fitting import format_decision
    from kaggle_kit.scores import format_scores

    task, images = found.pool.task, budget.images if budget else None
    sections = [[f"note: {note}" for note in found.notes], format_runs(found)]
    if len(found.alone) > 1:
        sections += [format_steps(found.choice), format_weights(found.blend)]
    if len(found.alone) > 1 and (budget or verbose):
        frontier = format_frontier(
            found.frontier,
            metric=task.metric,
            chosen=found.blend.runs,
            costs=found.costs,
            num_images=images,
            accelerator=task.limits.accelerator,
        )
        sections.append(frontier)
    if len(found.blend.runs) > 1:
        sections.append(format_order(found, images=images))
    if found.diversity and verbose:
        sections.append(format_diversity(found.diversity))
    if found.fitted:
        sections.append(format_decision(found.fitted))
    sections.append(["the blend by the highest probability alone:", *format_scores({"blend": found.scores})])
    return [section for section in sections if section]


def _settle_prior_shift(options: argparse.Namespace, found: FittedBlend, effects: list[ShiftEffect]) -> FittedBlend:
    """Return the blend with or without the correction for class shares, by what it was seen to do."""
    from kaggle_kit.shift_effect import correction_helps, format_prior_shift

    if not effects:
        return found
    print("\n".join(format_prior_shift(found.pool.task.metric, effects)))
    if options.prior_shift != "auto" or correction_helps(effects):
        return found
    print(f"{options.out} does not correct for class shares; --prior-shift always would")
    return dataclasses.replace(found, blend=dataclasses.replace(found.blend, prior_shift=False))


def _print_outcome(out: Path, found: FittedBlend, page: Path, folders: Mapping[str, Path]) -> None:
    blend, rival = found.blend, found.rival
    assert blend.score is not None
    ways = ", ".join(f"{head} {name}" for head, name in found.choice.strategies.items())
    print(f"{out}: {len(blend.runs)} run(s), {ways}; out of fold {found.pool.task.metric} {blend.score}")
    if len(found.alone) > 1:
        gained = "{:+.4f} ({:+.4f} to {:+.4f})".format(rival.shortfall.value, *rival.shortfall.interval)
        alone = f"the best run alone, {rival.run}, gets {rival.score.total:.4f} by rules of its own"
        print(f"{alone}; the blend gains {gained}")
    if blend.prior_shift:
        print("the kernel corrects for the test's class shares, which these scores are without")
    print(f"{page}: what was tried, score against time, how runs differ, and where")
    names = " ".join(str(folders[name]) for name in blend.runs)
    print(f"next: kaggle-kit bundle {names} --blend {out} --out ./bundle")


def _result(out: Path, page: Path, found: FittedBlend, effects: Sequence[ShiftEffect]) -> dict[str, Any]:
    return {
        "out": out,
        "page": page,
        "runs": found.blend.runs,
        "shares": found.blend.shares(),
        "alone": found.alone,
        "rival": found.rival,
        "strategies": found.choice.strategies,
        "steps": found.steps,
        "score": found.blend.score,
        "prefixes": [
            {"runs": found.blend.runs[: number + 1], "score": prefix.score}
            for number, prefix in enumerate(found.blend.prefixes)
        ],
        "frontier": found.frontier,
        "seconds": found.blend.seconds,
        "scores": found.scores,
        "candidates": found.fitted.candidates if found.fitted else (),
        "prior_shift": found.blend.prior_shift,
        "prior_shift_effects": effects,
    }
