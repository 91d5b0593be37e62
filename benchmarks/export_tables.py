"""What the export benchmark measures and prints. `export.py` says how to run it."""

from __future__ import annotations

import copy
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from export_members import CONTESTS, LONGER, NETWORKS, Ground

from kaggle_kit.ensemble import blend_probs, equal_blend
from kaggle_kit.errors import KitError
from kaggle_kit.export.fused import fuse_members
from kaggle_kit.export.gate import LIMITS, measure_change, refusal
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.half import half_candidates
from kaggle_kit.export.int8 import int8_candidates
from kaggle_kit.export.lowering import CALIBRATION_IMAGES
from kaggle_kit.export.onnx import compare, export_onnx, rerun, run_onnx, write_model
from kaggle_kit.export.sampling import packed_source, rows_in, spread
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Probs
from kaggle_kit.runs import Run, read_run
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import Change, Precision, open_bundle
from kaggle_kit.sources import PackedSource
from kaggle_kit.train.checkpoint import load_checkpoint
from kaggle_kit.train.model import Network

BATCHES = (1, 7, 64)
PAIRS = (("resnet50", "efficientnet_b0"), ("efficientnet_b0", "vit_tiny"))
TIMED_BATCH = 64
ROUNDS = 9
TARGET_S = 120
TARGET_DIFF = 1e-5


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A member whose training is finished.

    Attributes:
        name: Its short name.
        ground: The competition.
        run: Of one fold.
        source: The images.
        rows: Those that are held out.
    """

    name: str
    ground: Ground
    run: Run
    source: PackedSource
    rows: npt.NDArray[np.int64]

    @property
    def title(self) -> str:
        """Its architecture, and for how long it was trained where that is unusual."""
        return NETWORKS[self.name] + (f", {LONGER[self.name]} epochs" if self.name in LONGER else "")

    def load(self) -> Network:
        """Return the network."""
        return load_checkpoint(self.run.checkpoint(0))[0]

    def export(self, *, tta: Sequence[str] = ()) -> tuple[ExportGraph, Path]:
        """Return the member's graph and its .onnx file, written anew."""
        graph = ExportGraph(self.load(), tta=tta)
        folder = self.ground.folder / "onnx"
        folder.mkdir(exist_ok=True)
        path = folder / f"{'_'.join((self.name, *tta))}.onnx"
        export_onnx(graph, path, shape=self.source.shape)
        return graph, path


def read_trained(work: Path, ground: str, networks: Sequence[str]) -> list[Trained]:
    """Return a competition's finished members among these networks, and say which are not finished."""
    place, found = Ground(name=ground, work=work), []
    for name in (name for name in CONTESTS[ground].members if name in networks):
        folder = place.run_folder(name)
        if not (folder / "run.json").is_file():
            print(f"not finished, and left out: {ground} {name}")
            continue
        run = read_run(folder)
        source = packed_source(run)
        rows = rows_in(run.oof().ids, source)
        found.append(Trained(name=name, ground=place, run=run, source=source, rows=rows))
    return found


def print_parity(work: Path, networks: Sequence[str]) -> None:
    """Print how far ONNX Runtime is from torch, and both from torch in float64."""
    print(
        f"Largest difference of a probability, target at most {TARGET_DIFF:.0e}; decisions of all three batch sizes; "
        "beyond: images further away than the target at any of them; float64: torch with the same weights.\n"
    )
    batches = [f"batch {size}" for size in BATCHES]
    print_head(
        *("network", "channels", "images", "score", "top probability", *batches, "beyond", "decisions changed", "of"),
        *("torch from float64", "ONNX Runtime from float64"),
    )
    for ground in ("caltech", "bangla"):
        for member in read_trained(work, ground, networks):
            print(parity_row(member), flush=True)


def parity_row(member: Trained) -> str:
    """Return a row of the table of parity."""
    graph, path = member.export()
    session = OnnxSession(path, device="cpu")
    exact = run_exact(graph.network, member.source, member.rows)
    away: dict[str, list[npt.NDArray[np.float64]]] = {"each other": [], "torch": [], "onnxruntime": []}
    changed = 0
    for size in BATCHES:
        batches = [member.rows[start : start + size] for start in range(0, len(member.rows), size)]
        expected = joined([run_torch(graph, member.source.take(rows)) for rows in batches])
        said = joined([session.run(member.source.take(rows)) for rows in batches])
        away["each other"].append(distances(expected, said))
        away["torch"].append(distances(exact, expected))
        away["onnxruntime"].append(distances(exact, said))
        changed += sum(int((said[head].argmax(1) != expected[head].argmax(1)).sum()) for head in said)
    top = np.median(np.concatenate([probs.max(axis=1) for probs in exact.values()]))
    cells = [
        member.title,
        str(member.source.shape[2]),
        f"{len(member.rows):,}",
        f"{member.run.score.total:.3f}",
        f"{top:.2f}",
        *(f"{one.max():.1e}" for one in away["each other"]),
        f"{(np.max(away['each other'], axis=0) > TARGET_DIFF).sum():,}",
        str(changed),
        f"{len(BATCHES) * len(member.rows) * len(exact):,}",
        f"{np.max(away['torch']):.1e}",
        f"{np.max(away['onnxruntime']):.1e}",
    ]
    return table_row(cells)


@torch.inference_mode()
def run_torch(graph: ExportGraph, images: Image) -> Probs:
    """Return {head: (B, C)} of (B, H, W, C) stored images, by torch in fp32."""
    found = graph.eval()(torch.from_numpy(images))
    return {name: probs.numpy() for name, probs in zip(graph.names, found, strict=True)}


@torch.inference_mode()
def run_exact(network: Network, source: PackedSource, rows: npt.NDArray[np.int64]) -> Probs:
    """Return {head: (rows, C)} by torch in float64, beside which both others only round."""
    exact = copy.deepcopy(network).double().eval()
    step, parts = exact.preprocess, []
    for start in range(0, len(rows), TIMED_BATCH):
        images = torch.from_numpy(source.take(rows[start : start + TIMED_BATCH])).double().permute(0, 3, 1, 2)
        if step.stored_size != step.input_size:
            images = step.rows @ images @ step.columns
        logits = exact.logits((images - step.mean) / step.std)
        parts.append({name: values.softmax(dim=1).numpy() for name, values in logits.items()})
    return joined(parts)


def joined(parts: Sequence[Probs]) -> Probs:
    """Return batches' probabilities as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def distances(one: Probs, other: Probs) -> npt.NDArray[np.float64]:
    """Return (N,) the largest difference of a probability of each image."""
    return np.max([np.abs(one[head].astype(np.float64) - other[head]).max(axis=1) for head in one], axis=0)


def print_fused(work: Path, networks: Sequence[str]) -> None:
    """Print the time of one graph against that of separate sessions and their blend."""
    members = {member.name: member for member in read_trained(work, "caltech", networks)}
    print(
        f"Batches of {TIMED_BATCH}, {ROUNDS} rounds of each in turns, medians; faster: the median of the rounds' "
        "ratios, and their range.\n"
    )
    print_head(
        *("members", "views", "separate, ms an image", "fused, ms an image", "fused is faster by", "in rounds"),
        "max abs difference",
    )
    for pair in PAIRS:
        if all(name in members for name in pair):
            for tta in ((), ("hflip",)):
                print(fused_row([members[name] for name in pair], tta), flush=True)


def fused_row(pair: Sequence[Trained], tta: Sequence[str]) -> str:
    """Return a row of the table of one graph against separate ones."""
    paths = {member.name: member.export(tta=tta)[1] for member in pair}
    blend, first = equal_blend(list(paths)), pair[0]
    path = first.ground.folder / "onnx" / f"{'_'.join(('fused', *paths, *tta))}.onnx"
    fuse_members({name: [file] for name, file in paths.items()}, blend, first.run.task, path)
    sessions, fused = [OnnxSession(file, device="cpu") for file in paths.values()], OnnxSession(path, device="cpu")
    images = first.source.take(first.rows[:TIMED_BATCH])

    def run_separate() -> Probs:
        return blend_probs(blend, [session.run(images) for session in sessions])

    diff = distances(run_separate(), fused.run(images)).max()
    times = take_turns({"separate": run_separate, "fused": lambda: fused.run(images)})
    ratios = [slow / fast for slow, fast in zip(times["separate"], times["fused"], strict=True)]
    cells = [
        " + ".join(member.title for member in pair),
        "image and flipped" if tta else "image",
        *(f"{1000 * statistics.median(times[way]) / len(images):.2f}" for way in ("separate", "fused")),
        f"{statistics.median(ratios):.2f} x",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{diff:.1e}",
    ]
    return table_row(cells)


def take_turns(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return each way's seconds in every round, after one that is not counted; who begins changes every round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for number in range(ROUNDS):
        for name in list(ways) if number % 2 else list(reversed(ways)):
            started = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - started)
    return times


def print_precision(work: Path, networks: Sequence[str]) -> None:
    """Print file size, CPU time and gate of each precision, refused candidates too."""
    print(
        f"Batches of {TIMED_BATCH}, {ROUNDS} rounds of each in turns, medians. Gate: against the member in fp32, on "
        f"held-out images; int8 is calibrated on {CALIBRATION_IMAGES} train images.\n"
    )
    print_head(
        *("network", "precision", "candidate", "MB", "ms an image", "x fp32", "decisions changed", "metric"),
        *("gain, 95 %", "max abs difference", "gate", "in fp32"),
    )
    for member in read_trained(work, "caltech", networks):
        for row in precision_rows(member):
            print(row, flush=True)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A form of a member in some precision.

    Attributes:
        precision: Which.
        place: Its number among the candidates.
        path: The file as it would be shipped.
        change: Against fp32.
        verdict: Why it is refused; empty: it is not.
        kept: What stays fp32.
    """

    precision: Precision
    place: int
    path: Path
    change: Change
    verdict: str
    kept: str


def precision_rows(member: Trained) -> list[str]:
    """Return a member's rows of the table of precisions."""
    path = member.export()[1]
    tried = [*try_candidates(member, path, "fp16"), *try_candidates(member, path, "int8")]
    images = member.source.take(member.rows[:TIMED_BATCH])
    sessions = {file: OnnxSession(file, device="cpu") for file in (path, *(one.path for one in tried))}
    times = take_turns({str(file): (lambda own=session: own.run(images)) for file, session in sessions.items()})
    medians = {name: statistics.median(values) / len(images) for name, values in times.items()}
    full = medians[str(path)]
    rows = [table_row([member.title, "fp32", "", megabytes(path), f"{1000 * full:.2f}", "1.00", *[""] * 6])]
    for one in tried:
        change, mine = one.change, medians[str(one.path)]
        cells = [
            member.title,
            one.precision,
            str(one.place),
            megabytes(one.path),
            f"{1000 * mine:.2f}",
            f"{mine / full:.2f}",
            f"{change.decisions_changed:,.0f} of {change.decisions:,} ({change.changed_share:.2%})",
            f"{change.score_before:.4f} to {change.score_after:.4f}",
            f"{change.interval[0]:+.4f} to {change.interval[1]:+.4f}",
            f"{change.max_abs_diff:.1e}",
            "refused" if one.verdict else "passed",
            one.kept,
        ]
        rows.append(table_row(cells))
    return rows


def try_candidates(member: Trained, path: Path, precision: Precision) -> list[Tried]:
    """Return the candidates of a precision up to the first that passes, as `kaggle-kit bundle` tries them."""
    assert precision != "fp32"
    others = np.setdiff1d(np.arange(len(member.source)), member.rows)
    images = member.source.take(spread(others, CALIBRATION_IMAGES))
    labels = member.run.labels().align(member.source.ids[member.rows])
    full = run_onnx(path, member.source, member.rows)
    make = half_candidates if precision == "fp16" else int8_candidates
    tried: list[Tried] = []
    for place, candidate in enumerate(make(onnx.load(path), images), start=1):
        said = run_onnx(candidate.emulated.SerializeToString(), member.source, member.rows)
        change = measure_change(member.run.task, labels, full, said)
        verdict = refusal(change, LIMITS[precision])
        file = path.with_name(f"{path.stem}_{precision}_{place}.onnx")
        write_model(candidate.model, file)
        tried.append(
            Tried(precision=precision, place=place, path=file, change=change, verdict=verdict, kept=candidate.kept)
        )
        if not verdict:
            break
    return tried


def megabytes(path: Path) -> str:
    """Return a file's size."""
    return f"{path.stat().st_size / 1e6:.1f}"


def print_bundle(work: Path, networks: Sequence[str]) -> None:
    """Print how long a bundle takes, and how long its steps take when they are done one by one."""
    members = read_trained(work, "digits", networks)
    if not members:
        raise SystemExit(f"no member of digits is finished in {work}; run `members` first")
    print_head(
        *("network", "parameters, M", "export s", "torch s", "ONNX Runtime s", "images", "max abs difference"),
        "decisions changed",
    )
    totals = np.zeros(3)
    for member in members:
        seconds, row = step_row(member)
        totals += seconds
        print(row, flush=True)
    print(table_row(["all", "", *(f"{one:.1f}" for one in totals), "", "", ""]))
    print(f"\n{time_bundle(members)}")


def time_bundle(members: Sequence[Trained]) -> str:
    """Return what a bundle of these members took, made by the command in a process of its own."""
    out = members[0].ground.folder / "bundle"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "kaggle_kit.cli", "bundle", *(str(member.run.folder) for member in members)]
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    spent = time.perf_counter() - started
    usage, bundle = resource.getrusage(resource.RUSAGE_CHILDREN), open_bundle(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    rows = ", ".join(f"{rows:,}" for rows in sorted({member.parity.rows for member in bundle.members}))
    worst = max(member.parity.max_abs_diff for member in bundle.members)
    return (
        f"`kaggle-kit bundle` of {len(bundle.members)} members, in a process of its own: {spent:.1f} s (target: below "
        f"{TARGET_S} s on 2 cores, {'met' if spent < TARGET_S else 'missed'}), {usage.ru_utime + usage.ru_stime:.1f} s "
        f"of CPU, {size / 1e6:.0f} MB; each compared with torch on {rows} images, at most {worst:.1e} away"
    )


def step_row(member: Trained) -> tuple[npt.NDArray[np.float64], str]:
    """Return the seconds of exporting, of torch and of ONNX Runtime on all held-out images, and a row that says so."""
    times = [time.perf_counter()]
    graph, path = member.export()
    times.append(time.perf_counter())
    expected = rerun(graph, member.source, member.rows)
    times.append(time.perf_counter())
    found = run_onnx(path, member.source, member.rows)
    times.append(time.perf_counter())
    try:
        parity = compare(expected, found, multilabel=(), name=path.name)
        said = [f"{parity.max_abs_diff:.1e}", str(parity.decisions_changed)]
    except KitError as error:
        said = [str(error), ""]
    seconds = np.diff(times)
    size = sum(parameter.numel() for parameter in graph.network.parameters()) / 1e6
    cells = [member.title, f"{size:.1f}", *(f"{one:.1f}" for one in seconds), f"{len(member.rows):,}", *said]
    return seconds, table_row(cells)


def print_head(*names: str) -> None:
    """Print the first two rows of a Markdown table."""
    print(f"{table_row(names)}\n{'|---' * len(names)}|", flush=True)


def table_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
