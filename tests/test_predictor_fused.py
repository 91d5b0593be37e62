from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pretended
import pytest
from conftest import HEADS, Toy, make_wide, random_blend
from handmade import RUNS, SHARES, make_bundle, random_weights, save_graph, sign

from kaggle_kit.ensemble import Blend, Prefix, blend_probs
from kaggle_kit.errors import BundleError, PredictionError, SettingError
from kaggle_kit.mixes import Mix, MixKind, Stack, Table, quantiles, softmax
from kaggle_kit.pixels import Image
from kaggle_kit.predictions import Predictions, Probs
from kaggle_kit.runtime import graphs, tensorrt
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import FUSED, GOLDEN, Bundle, Golden, load_golden, save_golden
from kaggle_kit.runtime.engines import EngineKey, Engines, query_gpus, write_engines
from kaggle_kit.runtime.golden import Distance, furthest_blend
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.sources import open_source
from kaggle_kit.submission import expected_rows, read_submission, validate_submission

RERUN = "KAGGLE_IS_COMPETITION_RERUN"


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_wide(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a fused graph; read-only."""
    return make_bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def bundle(whole: Bundle, tmp_path: Path) -> Bundle:
    """The same, to be broken at will."""
    return dataclasses.replace(whole, folder=shutil.copytree(whole.folder, tmp_path / "bundle"))


def images_of(toy: Toy) -> Image:
    return np.concatenate([chunk.images for chunk in open_source(toy.task, "test", toy.hidden).chunks()])


def loaded_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the graphs that are loaded from here on."""
    loaded: list[str] = []
    load = OnnxSession.__init__

    def record(session: OnnxSession, path: Path, **options) -> None:
        loaded.append(path.name)
        load(session, path, **options)

    monkeypatch.setattr(OnnxSession, "__init__", record)
    return loaded


@pytest.mark.parametrize(
    ("num_runs", "fused", "files"),
    [
        (None, None, [FUSED]),
        (2, None, [FUSED]),
        (None, True, [FUSED]),
        (1, None, ["member_a_fold0.onnx", "member_a_fold1.onnx"]),
        (None, False, ["member_a_fold0.onnx", "member_a_fold1.onnx", "member_b_fold0.onnx"]),
    ],
)
def test_the_fused_graph_runs_the_whole_blend_and_nothing_else(
    whole: Bundle, monkeypatch: pytest.MonkeyPatch, num_runs: int | None, fused: bool | None, files: list[str]
) -> None:
    loaded, said = loaded_files(monkeypatch), []
    Predictor(whole.folder, num_runs=num_runs, fused=fused, say=said.append)
    assert loaded == files
    assert ("member(s) in one graph, out-of-fold" in said[1]) == (files == [FUSED])
    assert said[-1].startswith("16 golden images agree to ")


def test_what_the_fused_graph_gives_passes_through_unchanged(whole: Bundle, toy: Toy) -> None:
    images = images_of(toy)
    expected = OnnxSession(whole.folder / FUSED).run(images)
    found = Predictor(whole.folder, say=quiet).run(images)
    separate = Predictor(whole.folder, fused=False, say=quiet).run(images)
    for head in HEADS:
        assert (found[head] == expected[head]).all()
        assert np.abs(found[head] - separate[head]).max() < 1e-6


def test_a_fused_graph_that_is_not_there_or_not_of_these_runs_is_refused(whole: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is the blend of all 2 runs, and the first 1 were asked for"):
        Predictor(whole.folder, num_runs=1, fused=True, say=quiet)
    separate = make_bundle(tmp_path / "separate", fused=False)
    with pytest.raises(SettingError, match="holds no fused graph; make the bundle with one, or leave `fused` out"):
        Predictor(separate.folder, fused=True, say=quiet)


def test_each_runs_probabilities_are_had_of_separate_members_alone(whole: Bundle, toy: Toy) -> None:
    images = images_of(toy)
    with pytest.raises(SettingError, match="gives the blend of 9 images, not each run's .* with `fused=False`"):
        Predictor(whole.folder, say=quiet).run_each(images)
    predictor = Predictor(whole.folder, fused=False, say=quiet)
    each = predictor.run_each(images)
    assert list(each) == list(RUNS)
    mixed = blend_probs(predictor.blend, list(each.values()))
    assert all((mixed[head] == probs).all() for head, probs in predictor.run(images).items())


def test_both_ways_give_the_same_submission_broken_images_and_all(
    whole: Bundle, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(toy.task, "test", toy.hidden)
    chunks = [dataclasses.replace(chunk, broken={"Test_1": "cut"}) for chunk in source.chunks()]
    monkeypatch.setattr(type(source), "chunks", lambda _source, **_rows: iter(chunks))
    answers = []
    for fused in (True, False):
        out = tmp_path / f"{fused}.csv"
        predicted = predict_submission(whole.folder, toy.hidden, out, fused=fused, say=quiet)
        for head, priors in whole.priors.items():
            row = predicted.predictions.align(np.array(["Test_1"])).probs[head][0]
            assert (row == np.array(priors, np.float32)).all()
        answers.append(read_submission(toy.task, out))
    assert (answers[0][0] == answers[1][0]).all()
    assert all((answers[0][1][head] == answers[1][1][head]).all() for head in HEADS)


def spoil_fused(bundle: Bundle) -> str:
    networks = [random_weights(seed) for seed in (0, 1, 10)]
    save_graph(networks, [0.25, 0.25, 0.5], bundle.folder / FUSED)
    return (
        r"golden images give the fused graph probabilities 0.\d+ away from home \(allowed 0.00\d+\), .* of image \d+,"
    )


def spoil_member(bundle: Bundle) -> str:
    (bundle.folder / FUSED).unlink()
    save_graph([random_weights(99)], [1.0], bundle.folder / "member_b_fold0.onnx")
    return (
        r"golden images give run 'b' probabilities 0.\d+ away from home \(allowed 0.002\), the furthest for head '\w+'"
    )


def spoil_pixels(bundle: Bundle) -> str:
    golden = load_golden(bundle.folder)
    rolled = golden.encoded[1:] + golden.encoded[:1]
    save_golden(dataclasses.replace(golden, encoded=rolled), bundle.folder)
    return r"of image \d+, whose pixels differ by up to 2[0-9]+ of 255; this machine's OpenCV or onnxruntime computes"


def spoil_encoding(bundle: Bundle) -> str:
    golden = load_golden(bundle.folder)
    save_golden(dataclasses.replace(golden, encoded=(b"GIF89a", *golden.encoded[1:])), bundle.folder)
    return "golden image 0 cannot be read by this machine's OpenCV"


def spoil_archive(bundle: Bundle) -> str:
    (bundle.folder / GOLDEN).write_bytes(b"no archive")
    return "golden.npz does not read"


@pytest.mark.parametrize("spoil", [spoil_fused, spoil_member, spoil_pixels, spoil_encoding, spoil_archive])
def test_a_golden_mismatch_stops_here_and_is_only_said_in_the_hidden_rerun(
    bundle: Bundle, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil
) -> None:
    message = spoil(bundle)
    sign(bundle if (bundle.folder / FUSED).exists() else dataclasses.replace(bundle, fused=None))
    out = tmp_path / "submission.csv"
    with pytest.raises(BundleError, match=message):
        predict_submission(bundle.folder, toy.hidden, out, say=quiet)
    assert not out.exists()
    monkeypatch.setenv(RERUN, "1")
    said: list[str] = []
    predict_submission(bundle.folder, toy.hidden, out, say=said.append)
    with pytest.raises(BundleError, match=message):
        raise BundleError(next(line for line in said if line.startswith("WARNING ")))
    validate_submission(toy.task, out, rows=expected_rows(toy.task, toy.hidden))


def test_only_the_first_golden_images_are_run_at_the_start(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden(bundle.folder)
    for probs in golden.probs.values():
        probs["root"][16:] = probs["root"][16:, ::-1]
    save_golden(golden, bundle.folder)
    sign(bundle)
    run, sizes = OnnxSession.run, []

    def record(session: OnnxSession, images: Image) -> Probs:
        sizes.append(len(images))
        return run(session, images)

    monkeypatch.setattr(OnnxSession, "run", record)
    Predictor(bundle.folder, say=quiet)
    assert sizes == [16]


def test_the_tolerance_is_the_bundles_own(bundle: Bundle) -> None:
    golden = load_golden(bundle.folder)
    shifted = {
        run: {head: values + np.float32(0.01) for head, values in one.items()} for run, one in golden.probs.items()
    }

    def with_tolerance(tolerance: float) -> Golden:
        return dataclasses.replace(golden, probs=shifted, tolerance=tolerance)

    for fused in (True, False):
        save_golden(with_tolerance(0.005), bundle.folder)
        sign(bundle)
        with pytest.raises(BundleError, match=r"away from home \(allowed 0.00[56]"):
            Predictor(bundle.folder, fused=fused, say=quiet)
        save_golden(with_tolerance(0.02), bundle.folder)
        sign(bundle)
        Predictor(bundle.folder, fused=fused, say=quiet)


@pytest.mark.parametrize("fused", [True, False])
def test_probabilities_of_nan_stop_here_and_get_the_priors_in_the_hidden_rerun(
    bundle: Bundle, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    weights = {**random_weights(10), "root": np.full_like(random_weights(10)["root"], np.nan)}
    save_graph([weights], [1.0], bundle.folder / "member_b_fold0.onnx")
    save_graph([random_weights(0), random_weights(1), weights], [0.35, 0.35, 0.3], bundle.folder / FUSED)
    geometric = {head: Mix(kind="geometric", weights=SHARES) for head in HEADS}
    blend = dataclasses.replace(bundle.blend, prefixes=(Prefix(), Prefix(heads=geometric)))
    sign(bundle if fused else dataclasses.replace(bundle, blend=blend))
    out = tmp_path / "submission.csv"
    with pytest.raises(BundleError, match="probabilities inf away from home"):
        Predictor(bundle.folder, fused=fused, say=quiet)
    monkeypatch.setenv(RERUN, "1")
    said: list[str] = []
    predicted = predict_submission(bundle.folder, toy.hidden, out, fused=fused, say=said.append)
    assert len(predicted.broken) == 9
    assert any("9 broken image(s) got the class priors; the first: Test_0: its prob" in line for line in said)
    assert all((predicted.predictions.probs[head] == bundle.priors[head][0]).all() for head in ("vowel",))
    validate_submission(toy.task, out, rows=expected_rows(toy.task, toy.hidden))


def test_a_nan_that_no_golden_image_shows_stops_here_and_costs_one_image_in_the_rerun(
    whole: Bundle, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, source = Predictor(whole.folder, say=quiet), open_source(toy.task, "test", toy.hidden)
    plain, run = predictor.predict(source), OnnxSession.run

    def overflow(session: OnnxSession, images: Image) -> Probs:
        probs = run(session, images)
        for row in np.flatnonzero((images == source.read(4)).all(axis=(1, 2, 3))):
            probs["vowel"][row] = np.nan
        return probs

    monkeypatch.setattr(OnnxSession, "run", overflow)
    with pytest.raises(PredictionError, match="'Test_4'"):
        predictor.predict(source)
    monkeypatch.setenv(RERUN, "1")
    predicted = predictor.predict(source)
    assert predicted.broken == {"Test_4": "its probabilities are NaN or infinite"}
    for head, probs in predicted.predictions.probs.items():
        assert (probs[4] == np.array(whole.priors[head], np.float32)).all()
        others = np.arange(9) != 4
        assert (probs[others] == plain.predictions.probs[head][others]).all()


def nudge(probs: np.ndarray, by: float, rng: np.random.Generator) -> np.ndarray:
    """Move logits a little, as rounding does."""
    return softmax(np.log(np.maximum(probs, 1e-6)) + by * rng.standard_normal(probs.shape)).astype(np.float32)


@pytest.mark.parametrize("kind", get_args(MixKind))
def test_a_blend_may_be_away_as_far_as_it_moves_with_its_runs_and_no_further(toy: Toy, kind: MixKind) -> None:
    rng = np.random.default_rng(0)
    runs = [{head: rng.dirichlet(np.ones(c), 400).astype(np.float32) for head, c in HEADS.items()} for _ in range(2)]
    ids = np.arange(400).astype(np.str_)
    oofs = {name: Predictions(ids=ids, probs=probs) for name, probs in zip("ab", runs, strict=True)}
    blend = random_blend(kind, toy.task, oofs)

    def distance(found: Probs) -> float:
        far = furthest_blend("it", found, blend, runs, tolerance=2e-3, multilabel=())
        return far.difference / far.allowed

    nudged = [{head: nudge(values, 1e-3, rng) for head, values in run.items()} for run in runs]
    assert distance(blend_probs(blend, runs)) == 0
    assert distance(blend_probs(blend, nudged)) < 1
    assert distance(blend_probs(blend, runs[::-1])) > 3


def many_classes(kind: MixKind, num_classes: int, rng: np.random.Generator) -> tuple[Blend, list[Probs]]:
    """Return a blend of two runs by one kind, and what they say of an image that they are sure of."""
    oof = [rng.dirichlet(np.ones(num_classes), 400).astype(np.float32) for _ in range(2)]
    if kind == "stack":
        coefficients, intercept = np.concatenate([np.eye(num_classes) / 2] * 2), np.zeros(num_classes)
        stack = Stack(sources=("root",), coefficients=Table.of(coefficients), intercept=Table.of(intercept))
        mix = Mix(kind=kind, stack=stack)
    else:
        mix = Mix(kind=kind, weights=(0.6, 0.4), power=0.4, temperatures=() if kind == "rank" else (0.7, 1.5))
    ranks = {"root": {name: Table.of(quantiles(one)) for name, one in zip("ab", oof, strict=True)}}
    blend = Blend(runs=("a", "b"), prefixes=(Prefix(), Prefix(heads={"root": mix})), ranks=ranks)
    sure = np.full((1, num_classes), 0.01 / (num_classes - 1), np.float32)
    sure[0, -1] = 0.99
    return blend, [{"root": sure}, {"root": sure}]


@pytest.mark.parametrize("num_classes", [3, 168])
@pytest.mark.parametrize("kind", get_args(MixKind))
def test_an_answer_that_is_the_same_for_all_is_too_far_from_a_sure_one_at_the_tolerance_of_int8(
    kind: MixKind, num_classes: int
) -> None:
    rng = np.random.default_rng(0)
    blend, runs = many_classes(kind, num_classes, rng)
    expected = blend_probs(blend, runs)["root"]
    uniform = np.full_like(expected, 1 / num_classes)
    near = blend_probs(blend, [{"root": nudge(run["root"], 0.05, rng)} for run in runs])["root"]

    def distance(found: np.ndarray) -> Distance:
        return furthest_blend("it", {"root": found}, blend, runs, tolerance=0.05, multilabel=())

    assert distance(uniform).too_far
    assert not distance(near).too_far


def test_labels_of_a_multi_label_head_that_are_voted_for_flip_at_a_half_and_no_other() -> None:
    mix = {"tags": Mix(kind="vote", weights=(0.6, 0.4))}
    blend = Blend(runs=("a", "b"), prefixes=(Prefix(), Prefix(heads=mix)))
    said = {"tags": np.array([[0.501, 0.9, 0.02]], np.float32)}
    for column, may in enumerate((True, False, False)):
        other = {"tags": said["tags"].copy()}
        other["tags"][0, column] = 0.499 if may else 1 - said["tags"][0, column]
        found = blend_probs(blend, [other, said], multilabel=["tags"])
        far = furthest_blend("it", found, blend, [said, said], tolerance=2e-3, multilabel=["tags"])
        assert far.difference > 0.5
        assert far.too_far != may


def test_a_vote_between_equals_may_flip_and_no_other() -> None:
    mix = {"root": Mix(kind="vote", weights=(0.6, 0.4))}
    blend = Blend(runs=("a", "b"), prefixes=(Prefix(), Prefix(heads=mix)))
    near = {"root": np.array([[0.5, 0.4995, 0.0005], [0.8, 0.1, 0.1]], np.float32)}
    other = {"root": np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1]], np.float32)}

    def too_far(row: int) -> bool:
        flipped = {"root": near["root"].copy()}
        flipped["root"][row, :2] = flipped["root"][row, 1::-1]
        found = blend_probs(blend, [flipped, other])
        far = furthest_blend("it", found, blend, [near, other], tolerance=2e-3, multilabel=())
        assert far.difference > 0.5
        return far.too_far

    assert not too_far(0)
    assert too_far(1)


def save_engines(bundle: Bundle, folder: Path, **files: str) -> Path:
    """Write a list of engines that were built on some other machine."""
    folder.mkdir()
    key = EngineKey(gpu="Tesla T4", compute_capability="7.5", driver="1", tensorrt="10.0", onnxruntime="1.0")
    graphs_of = {name: digest for name, digest in bundle.files.items() if name.endswith(".onnx")}
    seconds = dict.fromkeys(graphs_of, 1000.0)
    write_engines(
        Engines(folder=folder, key=key, members=graphs_of, seconds=seconds, batch=64, shape=(24, 32, 1), files=files)
    )
    return folder


@pytest.mark.parametrize("build_s", [None, 1.0])
def test_engines_of_another_machine_are_passed_over_aloud_and_the_submission_is_the_same(
    whole: Bundle, toy: Toy, tmp_path: Path, build_s: float | None
) -> None:
    engines = save_engines(whole, tmp_path / "engines")
    said: list[str] = []
    with_engines = predict_submission(
        whole.folder, toy.hidden, tmp_path / "s.csv", engines=engines, build_s=build_s, say=said.append
    )
    plain = predict_submission(whole.folder, toy.hidden, tmp_path / "plain.csv", say=quiet)
    (line,) = [line for line in said if line.startswith("running on")]
    assert ": TensorRT was passed over: " in line
    for head in HEADS:
        assert np.abs(with_engines.predictions.probs[head] - plain.predictions.probs[head]).max() < 1e-5


def test_damaged_engines_are_passed_over_aloud(whole: Bundle, tmp_path: Path) -> None:
    engines = save_engines(whole, tmp_path / "engines", **{"a.engine": "0" * 64})
    said: list[str] = []
    Predictor(whole.folder, engines=engines, say=said.append)
    assert said[0].startswith("WARNING engines are passed over: ")
    assert "a.engine is missing, or not as it was built; build the engines again" in said[0]
    assert said[1].startswith("running on")


def test_the_seconds_for_builds_are_those_of_all_graphs_together(
    whole: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, left = [100.0], []

    def load(path: Path, *, build_s: float | None, **options) -> OnnxSession:
        left.append(build_s)
        now[0] += 40
        return OnnxSession(path)

    monkeypatch.setattr(graphs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(graphs, "OnnxSession", load)
    Predictor(whole.folder, fused=False, build_s=60, say=quiet)
    Predictor(whole.folder, build_s=None, say=quiet)
    assert left == [60, 20, 0, None]


@pytest.mark.parametrize(("build_s", "seconds"), [(None, 9 * 3600 / 20), (0.0, None), (60.0, 60.0)])
def test_builds_may_take_a_twentieth_of_the_time_limit_where_nothing_else_is_said(
    whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_s: float | None, seconds: float | None
) -> None:
    left = []

    def load(path: Path, *, build_s: float | None, **options) -> OnnxSession:
        left.append(build_s)
        return OnnxSession(path)

    monkeypatch.setattr(graphs.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(graphs, "OnnxSession", load)
    Predictor(whole.folder, engines=save_engines(whole, tmp_path / "engines"), build_s=build_s, say=quiet)
    assert whole.task.limits.hours == 9
    assert left == [seconds]


@pytest.mark.parametrize("build_s", [None, 0.0])
def test_stale_engines_are_built_again_before_predicting_and_not_where_no_time_is_given(
    whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_s: float | None
) -> None:
    pretended.pretend_gpu(tmp_path / "pretended", monkeypatch)
    said: list[str] = []
    Predictor(whole.folder, engines=save_engines(whole, tmp_path / "engines"), build_s=build_s, say=said.append)
    built = build_s is None
    assert any(line.startswith("fused.onnx: built in ") for line in said) == built
    assert any(line.startswith(f"running on {tensorrt.PROVIDER}") for line in said) == built
    assert any("build them with kernels/build_engine" in line for line in said) != built
    query_gpus.cache_clear()


SEPARATE = ["member_a_fold0.onnx", "member_a_fold1.onnx", "member_b_fold0.onnx"]


def test_in_the_rerun_a_wrong_fused_graph_gives_way_to_separate_members(
    bundle: Bundle, whole: Bundle, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = spoil_fused(bundle)
    sign(bundle)
    monkeypatch.setenv(RERUN, "1")
    loaded, said = loaded_files(monkeypatch), []
    predicted = predict_submission(bundle.folder, toy.hidden, tmp_path / "s.csv", say=said.append)
    assert loaded == [FUSED, *SEPARATE]
    (warning,) = [line for line in said if line.startswith("WARNING ")]
    assert re.search(message, warning) and warning.endswith("; trying separate members without engines")
    start = said.index(warning)
    assert said[start + 2].startswith("run(s) a, b: 3 member(s), out-of-fold")
    assert said[start + 3].startswith("16 golden images agree to ")
    right = predict_submission(whole.folder, toy.hidden, tmp_path / "right.csv", fused=False, say=quiet)
    for head in HEADS:
        assert (predicted.predictions.probs[head] == right.predictions.probs[head]).all()
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "right.csv").read_bytes()


@pytest.mark.parametrize(
    ("shares", "sharpness", "nearest"), [([0.3, 0.3, 0.4], -1.0, "the fused graph"), ([0.0, 0.0, 1.0], 0.9, "run 'b'")]
)
def test_in_the_rerun_what_is_nearer_to_home_goes_on_where_both_ways_disagree(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, shares: list[float], sharpness: float, nearest: str
) -> None:
    b, separate = random_weights(10), nearest != "the fused graph"
    other = {head: np.float32(sharpness) * weights for head, weights in b.items()}
    save_graph([random_weights(0), random_weights(1), b], shares, bundle.folder / FUSED)
    save_graph([other], [1.0], bundle.folder / "member_b_fold0.onnx")
    sign(bundle)
    with pytest.raises(BundleError, match="golden images give the fused graph"):
        Predictor(bundle.folder, say=quiet)
    monkeypatch.setenv(RERUN, "1")
    said: list[str] = []
    predictor = Predictor(bundle.folder, say=said.append)
    assert [line.split(" probabilities")[0] for line in said if line.startswith("WARNING ")] == [
        "WARNING golden images give the fused graph",
        f"WARNING golden images give {nearest}",
    ]
    assert isinstance(predictor._graphs, graphs.SeparateMembers if separate else graphs.FusedGraph)
    assert any(line.startswith("separate members are no nearer to home (0.") for line in said) != separate


def test_in_the_rerun_engines_that_compute_something_else_are_given_up(
    whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.pretend_gpu(tmp_path / "pretended", monkeypatch)
    run = pretended.Session.run

    def wrong(session: pretended.Session, names: list[str], feed: dict[str, Image]) -> list[np.ndarray]:
        values = run(session, names, feed)
        return [value[:, ::-1] for value in values] if session.runs_on == tensorrt.PROVIDER else values

    monkeypatch.setattr(pretended.Session, "run", wrong)
    engines, said = save_engines(whole, tmp_path / "engines"), []
    with pytest.raises(BundleError, match="golden images give run '.' probabilities"):
        Predictor(whole.folder, fused=False, engines=engines, say=quiet)
    monkeypatch.setenv(RERUN, "1")
    Predictor(whole.folder, fused=False, engines=engines, say=said.append)
    assert [line.split(" (")[0] for line in said if line.startswith("running on")] == [
        f"running on {tensorrt.PROVIDER}",
        "running on CUDAExecutionProvider",
    ]
    assert said[-1].startswith("16 golden images agree to ")
    query_gpus.cache_clear()


def test_each_backend_that_runs_is_said_once() -> None:
    gpu = SimpleNamespace(provider="TensorrtExecutionProvider", passed_over=())
    stale = SimpleNamespace(provider="CUDAExecutionProvider", passed_over=("TensorRT was passed over: it is old",))
    lines = graphs.describe_sessions([gpu, stale, gpu, stale])  # type: ignore[list-item]
    assert [line.split(" (")[0] for line in lines] == [
        "running on TensorrtExecutionProvider",
        "running on CUDAExecutionProvider",
    ]
    assert lines[1].endswith("TensorRT was passed over: it is old")
