"""`kaggle-kit blend`: choose how runs become one prediction, within what the kernel has time for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
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
        help="auto: the simplest that no other beats beyond luck, head by head, on images it was not fitted on; or one "
        "of them for all heads (default: %(default)s)",
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
        choices=("auto", "always"),
        nargs="?",
        const="auto",
        help="let the kernel estimate the test's class shares and correct for them (EM, Saerens 2002); shows what that "
        "does to out-of-fold images of several class shares, and leaves it out where it helps nowhere, unless `always`",
    )
    _add_budget(one)


def _add_budget(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--budget",
        type=_hours,
        metavar="HOURS",
        help="the time all runs together may take in the kernel, like 2 or 1.5; leaves out runs that do not fit",
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
        "as a run DIR/soup_NAME for each architecture, and offer it to the blend",
    )
    one.add_argument(
        "--common", action="store_true", help="leave out images that some run does not predict, rather than stop"
    )


def _hours(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours; write it like 2 or 0.5") from None


def blend(options: argparse.Namespace) -> tuple[Result, int]:
    """Choose a blend, say how, and write it with its page."""
    from kaggle_kit.blending import Budget, fit_blend, foresee_prior_shift, with_diversity
    from kaggle_kit.blending.report import write_blend_report
    from kaggle_kit.ensemble import save_blend
    from kaggle_kit.files import check_output_file
    from kaggle_kit.runs import read_run

    check_output_file(options.out, ".json")
    if (options.budget is None) != (options.images is None):
        raise SettingError("--budget and --images go together: --budget 2 --images 200000 is two hours for 200,000")
    budget = None if options.budget is None else Budget(hours=options.budget, images=options.images)
    runs = [read_run(folder) for folder in options.runs]
    if options.soup is not None:
        runs += _soups(runs, options.soup)
    strategies: Sequence[Strategy] | None = None if options.method == "auto" else (options.method,)
    found = fit_blend(
        runs,
        fit_rules=options.decision == "auto",
        prior_shift=options.prior_shift is not None,
        strategies=strategies,
        budget=budget,
        costs=_costs(options.costs, runs, needed=budget is not None),
        common_only=options.common,
    )
    if len(found.blend.runs) > 1:
        found = with_diversity(found)
    _print_choice(found, runs, budget)
    effects = foresee_prior_shift(found) if options.prior_shift else []
    found = _settle_prior_shift(options, found, effects)
    save_blend(found.blend, options.out)
    task = found.pool.task
    page = write_blend_report(options.out.with_suffix(".html"), task=task, fitted=found, budget=budget)
    _print_outcome(options.out, found, page)
    return _result(options.out, page, found, effects), DONE


def _soups(runs: Sequence[Run], out: Path) -> list[Run]:
    """Return a soup of each architecture that several runs have, those left out where averaging helps no run."""
    from kaggle_kit.blending.soup import format_soup, make_soup
    from kaggle_kit.runs import EVERYTHING

    groups: dict[str, list[Run]] = {}
    for run in runs:
        if EVERYTHING not in run.folds:
            groups.setdefault(run.config.model.name, []).append(run)
    several = {name: group for name, group in groups.items() if len(group) > 1}
    if not several:
        raise SettingError(f"--soup averages runs of one architecture; found one run each of {', '.join(groups)}")
    soups = []
    for name, group in several.items():
        made = make_soup(group, out / f"soup_{name}")
        print("\n".join(format_soup(made)))
        soups += [made.run] if made.is_written else []
    return soups


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


def _print_choice(found: FittedBlend, runs: Sequence[Run], budget: Budget | None) -> None:
    from kaggle_kit.blending.diversity import format_diversity
    from kaggle_kit.blending.frontier import format_frontier
    from kaggle_kit.blending.tables import format_order, format_steps, format_weights
    from kaggle_kit.decision_fitting import format_decision
    from kaggle_kit.scores import format_scores

    for note in found.notes:
        print(f"WARNING {note}")
    for run in runs:
        print(f"{run.name}: out-of-fold {run.score}" + ("" if run.name in found.blend.runs else ", not used"))
    images = budget.images if budget else None
    sections = [format_steps(found.choice)]
    if len(runs) > 1:
        sections += [
            format_weights(found.blend),
            format_frontier(
                found.frontier,
                metric=found.pool.task.metric,
                chosen=found.blend.runs,
                costs=found.costs,
                num_images=images,
                accelerator=found.pool.task.limits.accelerator,
            ),
            format_order(found, images=images),
        ]
    if found.diversity:
        sections.append(format_diversity(found.diversity))
    sections.append(format_scores({"blend": found.scores}))
    if found.fitted:
        sections.append(format_decision(found.fitted))
    print("\n" + "\n\n".join("\n".join(section) for section in sections) + "\n")


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


def _print_outcome(out: Path, found: FittedBlend, page: Path) -> None:
    score, num = found.blend.score, len(found.blend.runs)
    assert score is not None
    ways = ", ".join(dict.fromkeys(found.choice.strategies.values()))
    shift = "; the kernel corrects for the test's class shares, which this score is without"
    print(f"{page}: how it was found")
    print(f"{out}: {num} run(s) by {ways}, out-of-fold {score}{shift if found.blend.prior_shift else ''}")


def _result(out: Path, page: Path, found: FittedBlend, effects: Sequence[ShiftEffect]) -> dict[str, Any]:
    return {
        "out": out,
        "page": page,
        "runs": found.blend.runs,
        "shares": found.blend.shares(),
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
