"""`kaggle-kit export` and `kaggle-kit bundle`: runs to .onnx files, and to one verified folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.commands import CHECK_FAILED, DONE, Result
from kaggle_kit.errors import BundleError, RefusedError, SettingError

if TYPE_CHECKING:
    from kaggle_kit.cli import Adder
    from kaggle_kit.ensemble import Blend
    from kaggle_kit.export.variant import Variant
    from kaggle_kit.runtime.bundle import Bundle, Member


def add_export_parsers(add: Adder) -> None:
    """Add `export` and `bundle`."""
    one = add(
        "export",
        export,
        "export runs to .onnx files, each compared with torch and with what its run stored",
        "kaggle-kit export runs/a --out ./onnx\n  kaggle-kit export runs/a --tta hflip scale=0.9,1.1 --out ./onnx_tta",
    )
    one.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    one.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets one .onnx file a fold model, and members.json; an earlier export of the same runs is replaced",
    )
    one.add_argument(
        "--blend", type=Path, metavar="FILE", help="put the temperatures that this blend fitted into the graphs"
    )
    _add_variant(one)

    one = add(
        "bundle",
        bundle,
        "export runs and their blend to one verified bundle, or verify one",
        "kaggle-kit bundle runs/a runs/b --blend blend.json --out ./bundle\n"
        "  kaggle-kit bundle runs/a runs/b --blend blend.json --precision fp16 --fused --out ./bundle\n"
        "  kaggle-kit bundle --verify ./bundle",
    )
    one.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; with --verify a bundle")
    one.add_argument("--blend", type=Path, metavar="FILE", help="from `kaggle-kit blend`; default: equal weights")
    one.add_argument("--out", type=Path, metavar="DIR", help="the bundle; one that is there is replaced")
    one.add_argument(
        "--fused",
        action="store_true",
        help="beside the members, put all of them and their blend into one graph that reads an image once: faster "
        "where all runs are used, and twice the bytes",
    )
    one.add_argument(
        "--verify",
        action="store_true",
        help="make nothing; check every file's hash, the manifest, and every member, cut and graph on the golden "
        "images; exit code 1: it is not sound. Needs no torch",
    )
    _add_variant(one)


def _add_variant(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--tta",
        nargs="+",
        default=[],
        metavar="VIEW",
        help="average probabilities over changes of the image too, inside the graph: hflip, vflip, scale=0.9,1.1, "
        "shift=4 (pixels, four ways); each view costs one more pass",
    )
    one.add_argument(
        "--derive",
        default="",
        metavar="HEAD",
        help="sum the heads' probabilities from this auxiliary head's (the root's from the grapheme's), where a run "
        "was trained with it; the change is measured out of fold, and of runs on everything on train images",
    )
    one.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="what members compute in; fp16 for GPUs, int8 for CPUs: refused, with the numbers, where decisions or "
        "the metric notice (default: %(default)s)",
    )
    one.add_argument(
        "--max-changed",
        type=float,
        metavar="SHARE",
        help="share of the decisions that a lower precision may change (default: 0.01 for fp16, 0.03 for int8); where "
        "it is above 0.02, what the runs stored may differ by it too",
    )
    one.add_argument(
        "--max-drop",
        type=float,
        metavar="X",
        help="by how much the metric may be worse, at the worse end of its 95%% interval (default: 0.005, int8: 0.01); "
        "above 0.005 against what the runs stored, too: on a few hundred images a near tie may cost more",
    )
    one.add_argument("--full", action="store_true", help="compare on all out-of-fold images, not on 2,000 of each fold")


def export(options: argparse.Namespace) -> tuple[Result, int]:
    """Export runs to .onnx files."""
    from kaggle_kit.ensemble import load_blend
    from kaggle_kit.export.bundle import PARITY_ROWS, export_runs
    from kaggle_kit.runs import read_run

    try:
        members = export_runs(
            [read_run(folder) for folder in options.runs],
            options.out,
            variant=_variant(options),
            blend=load_blend(options.blend) if options.blend else None,
            parity_rows=None if options.full else PARITY_ROWS,
        )
    except RefusedError as error:
        return _refused(error)
    _print_members(members)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {len(members)} member(s), {size / 1e6:.1f} MB")
    return {"out": options.out, "members": members}, DONE


def bundle(options: argparse.Namespace) -> tuple[Result, int]:
    """Export runs and their blend to one bundle, or verify one."""
    if options.verify:
        return _verify(options)
    from kaggle_kit.ensemble import equal_blend, load_blend
    from kaggle_kit.export.bundle import PARITY_ROWS, write_bundle
    from kaggle_kit.runs import read_run

    if options.out is None:
        raise SettingError("say where the bundle goes with --out DIR, or check one that is there with --verify")
    runs = [read_run(folder) for folder in options.runs]
    chosen: Blend = load_blend(options.blend) if options.blend else equal_blend([run.name for run in runs])
    left_out = [run.name for run in runs if run.name not in chosen.runs]
    if left_out:
        print(f"{', '.join(left_out)} {'is' if len(left_out) == 1 else 'are'} not in the blend and not exported")
    try:
        written = write_bundle(
            runs,
            chosen,
            options.out,
            variant=_variant(options),
            fused=options.fused,
            parity_rows=None if options.full else PARITY_ROWS,
        )
    except RefusedError as error:
        return _refused(error)
    _print_members(written.members)
    shares = written.blend.shares()
    _print_bundle(options.out, written)
    return {
        "out": options.out,
        "members": written.members,
        "shares": shares,
        "left_out": left_out,
        "oof_score": written.oof_score,
        "change": written.change,
        "fused": written.fused,
    }, DONE


def _refused(error: RefusedError) -> tuple[Result, int]:
    print(f"refused, and nothing was written: {error}")
    return {"refused": str(error)}, CHECK_FAILED


def _verify(options: argparse.Namespace) -> tuple[Result, int]:
    from kaggle_kit.runtime.bundle import MANIFEST
    from kaggle_kit.runtime.verify import format_verified, verify_bundle

    if len(options.runs) > 1:
        raise SettingError(f"--verify takes one bundle, not {len(options.runs)} folders")
    given = [name for name in ("out", "blend", "fused", "tta", "derive", "full") if getattr(options, name)]
    if given or options.precision != "fp32":
        raise SettingError(
            f"--verify makes nothing and takes no --{(given or ['precision'])[0]}; leave one of the two out"
        )
    folder = options.runs[0]
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is no bundle (no {MANIFEST}); give the folder that `kaggle-kit bundle` wrote")
    try:
        verified = verify_bundle(folder)
    except BundleError as error:
        print(f"{folder} is not sound: {error}")
        return {"bundle": folder, "sound": False, "why": str(error)}, CHECK_FAILED
    print("\n".join(format_verified(verified)))
    return {"bundle": folder, "sound": True, "verified": verified}, DONE


def _variant(options: argparse.Namespace) -> Variant:
    from kaggle_kit.export.variant import Variant

    return Variant(
        tta=tuple(options.tta),
        derive_from=options.derive,
        precision=options.precision,
        max_changed=options.max_changed,
        max_drop=options.max_drop,
    )


def _print_members(members: Sequence[Member]) -> None:
    from kaggle_kit.export.gate import describe_change
    from kaggle_kit.runs import EVERYTHING

    for member in members:
        print(f"{member.file}: {_describe_parity(member)}; {1000 * member.seconds:.1f} ms an image on this CPU")
        if member.stored:
            learned = member.fold == EVERYTHING
            before = "its network without these, on images it has learned" if learned else "oof.npz"
            print(f"  against {before}: {describe_change(member.stored)}")
        if member.lowered:
            where = ", on images it has learned" if member.score_of == "cross-validation" else ""
            print(
                f"  {member.precision} against fp32{where}: {describe_change(member.lowered)}; fp32 keep: {member.kept}"
            )
        if member.no_tensorrt and member.precision != "int8":  # which is for CPUs
            print(f"  TensorRT would refuse it: {'; '.join(member.no_tensorrt)}")


def _describe_parity(member: Member) -> str:
    parity = member.parity
    if not member.kit_version:
        return "from elsewhere, taken as it is"
    return (
        f"repeats torch to {parity.max_abs_diff:.1e} on {parity.rows:,} images, {parity.decisions_changed} decisions "
        "differ"
    )


def _print_bundle(out: Path, written: Bundle) -> None:
    from kaggle_kit.export.gate import describe_change

    shares = written.blend.shares()
    print("running order, and each run's share: " + ", ".join(f"{name} {shares[name]:.3f}" for name in shares))
    if written.change:
        print(f"the blend, against what the runs stored: {describe_change(written.change)}")
    if written.fused:
        whole, apart = 1000 * written.fused.seconds, 1000 * sum(member.seconds for member in written.members)
        verdict = "" if whole < apart else "; on this CPU it does not pay"
        print(f"{written.fused.file}: all in one graph {whole:.1f} ms an image, one by one {apart:.1f} ms{verdict}")
        if written.fused.no_tensorrt and written.members[0].precision != "int8":
            print(f"  TensorRT would refuse it: {'; '.join(written.fused.no_tensorrt)}")
    size = sum((out / name).stat().st_size for name in written.files)
    rules = "" if written.decision.is_plain else ", with fitted decision rules"
    shift = ", and corrects for the test's class shares, which that score is without" if written.prior_shift else ""
    other = any(one.lowered or one.tta or one.derived_from for one in written.members) and written.change
    before = f", as validated; {other.score_before:.4f} to {other.score_after:.4f} by this export" if other else ""
    score = f"out-of-fold {written.oof_score:.4f}{rules}{shift}{before}"
    print(f"{out}: {len(written.members)} member(s), {size / 1e6:.1f} MB, {score}")
    print(f"next: kaggle-kit rehearse submit --task TASK --data DATA --hidden-images 2000 --bundle {out}")
