from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import Toy, make_files, random_blend, with_blend, write_shard

from kaggle_kit.cli import main
from kaggle_kit.ensemble import Blend, blend_predictions, blend_probs, equal_blend, mean_probs
from kaggle_kit.errors import DataError, KitError, SettingError, SubmissionError
from kaggle_kit.mixes import MixKind
from kaggle_kit.predictions import Predictions
from kaggle_kit.prior_shift import shift_predictions
from kaggle_kit.runs import Run
from kaggle_kit.runtime import graphs, mounts
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.submitting import predict_submission
from kaggle_kit.sources import Chunk, open_source
from kaggle_kit.sources.wide_parquet import WideParquetSource
from kaggle_kit.submission import expected_rows, read_submission, validate_submission


def quiet(_line: str) -> None:
    pass


@pytest.fixture
def test_data(trained: tuple[Toy, list[Run]], tmp_path: Path) -> Path:
    """The hidden test as the kernel would find it, to be broken at will."""
    return shutil.copytree(trained[0].hidden, tmp_path / "input")


def test_a_submission_holds_the_decisions_of_the_bundle(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, test_data: Path, tmp_path: Path
) -> None:
    task = trained[0].task
    out = tmp_path / "out" / "submission.csv"
    lines: list[str] = []
    predicted = predict_submission(bundle_folder, test_data, out, say=lines.append)
    ids, decided = read_submission(task, out)
    assert sorted(ids) == sorted(predicted.predictions.ids)
    expected = predicted.predictions.align(ids).decide()
    assert all((decided[head] == expected[head]).all() for head in decided)
    assert any("running on" in line for line in lines)
    assert any("9 of 9 images" in line for line in lines)


@pytest.mark.parametrize("rows", [0, 1])
def test_tests_of_no_and_one_image_give_whole_submissions(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, test_data: Path, tmp_path: Path, rows: int
) -> None:
    (test_data / "test_1.parquet").unlink()
    write_shard(test_data / "test_0.parquet", ["Test_0"][:rows], np.zeros((rows, 24, 32), np.uint8))
    wanted = "".join(f"Test_0_{head},0\n" for head in ("vowel", "root") if rows)
    (test_data / "sample_submission.csv").write_text("row_id,target\n" + wanted)
    predict_submission(bundle_folder, test_data, tmp_path / "s.csv", say=quiet)
    validate_submission(trained[0].task, tmp_path / "s.csv", rows=expected_rows(trained[0].task, test_data))
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2 * rows


def test_a_missing_test_shard_is_an_error_and_writes_nothing(
    bundle_folder: Path, test_data: Path, tmp_path: Path
) -> None:
    (test_data / "test_1.parquet").unlink()
    with pytest.raises(DataError, match=r"sample_submission.csv names 4 of 9 images that .*: 'Test_5'"):
        predict_submission(bundle_folder, test_data, tmp_path / "s.csv", say=quiet)
    assert not (tmp_path / "s.csv").exists()


def test_heads_that_the_bundle_lacks_are_named(bundle_folder: Path, test_data: Path, tmp_path: Path) -> None:
    path = test_data / "sample_submission.csv"
    path.write_text(path.read_text() + "Test_0_tone,0\n")
    with pytest.raises(SubmissionError, match="row id 'Test_0_tone' does not read as"):
        predict_submission(bundle_folder, test_data, tmp_path / "s.csv", say=quiet)


def test_predictions_do_not_depend_on_chunks_or_batches(
    trained: tuple[Toy, list[Run]], bundle_folder: Path, test_data: Path
) -> None:
    predictor = Predictor(bundle_folder, say=quiet)
    source = open_source(trained[0].task, "test", test_data)
    predictions = predictor.predict(source).predictions
    for row in (0, 4, 8):
        alone = predictor.run(source.read(row)[None])
        for head, probs in alone.items():
            assert np.abs(probs[0] - predictions.probs[head][row]).max() < 1e-5


@pytest.fixture(scope="module")
def files_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Path]:
    """A bundle for the toy competition of JPEG files."""
    from kaggle_kit.ensemble import equal_blend
    from kaggle_kit.export.bundle import write_bundle
    from kaggle_kit.folds import make_folds
    from kaggle_kit.labels import read_labels
    from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
    from kaggle_kit.train.crossval import train_run

    folder = tmp_path_factory.mktemp("files")
    toy = make_files(folder)
    config = TrainConfig(model=ModelConfig(name="test_resnet"), loader=LoaderConfig(batch_size=8), epochs=1)
    folds = make_folds(read_labels(toy.task, toy.data), num_folds=2)
    run = train_run(toy.task, config, data=toy.data, folds=folds, out=folder / "run", only=0)
    write_bundle([run], equal_blend(["run"]), folder / "bundle")
    return toy, folder / "bundle"


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda _data: b"", lambda _data: b"no image at all"])
def test_a_broken_test_image_gets_the_priors_and_is_counted(
    files_bundle: tuple[Toy, Path], tmp_path: Path, damage
) -> None:
    toy, bundle = files_bundle
    data = shutil.copytree(toy.hidden, tmp_path / "input")
    path = data / "images" / "21.jpg"
    path.write_bytes(damage(path.read_bytes()))
    lines: list[str] = []
    predicted = predict_submission(bundle, data, tmp_path / "s.csv", say=lines.append)
    assert list(predicted.broken) == ["21.jpg"]
    assert any(line.startswith("WARNING 1 broken image(s) got the class priors") for line in lines)
    assert predicted.predictions.align(np.array(["21.jpg"])).probs["kind"][0].tolist() == [0.5, 0.5]
    assert len(read_submission(toy.task, tmp_path / "s.csv")[0]) == 4


def test_an_image_file_that_is_missing_is_a_broken_image_in_the_rerun_alone(
    files_bundle: tuple[Toy, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, bundle = files_bundle
    data = shutil.copytree(toy.hidden, tmp_path / "input")
    (data / "images" / "21.jpg").unlink()
    with pytest.raises(DataError, match="lacks 1 of 4 images: '21.jpg'"):
        predict_submission(bundle, data, tmp_path / "s.csv", say=quiet)
    monkeypatch.setenv(mounts.RERUN_VARIABLE, "1")
    predicted = predict_submission(bundle, data, tmp_path / "s.csv", say=quiet)
    assert list(predicted.broken) == ["21.jpg"]
    assert len(read_submission(toy.task, tmp_path / "s.csv")[0]) == 4


def test_a_link_to_nowhere_is_a_broken_image(files_bundle: tuple[Toy, Path], tmp_path: Path) -> None:
    toy, bundle = files_bundle
    data = shutil.copytree(toy.hidden, tmp_path / "input")
    (data / "images" / "20.jpg").unlink()
    (data / "images" / "20.jpg").symlink_to(tmp_path / "nowhere")
    assert list(predict_submission(bundle, data, tmp_path / "s.csv", say=quiet).broken) == ["20.jpg"]


def test_golden_files_keep_their_bytes(files_bundle: tuple[Toy, Path]) -> None:
    from kaggle_kit.runtime.bundle import load_golden

    toy, bundle = files_bundle
    originals = {path.read_bytes() for path in (toy.data / "images").iterdir()}
    assert set(load_golden(bundle).encoded) <= originals


def test_priors_are_the_train_shares(files_bundle: tuple[Toy, Path]) -> None:
    assert open_bundle(files_bundle[1]).priors == {"kind": (0.5, 0.5)}


@pytest.mark.parametrize("place", ["toy", "competitions/toy", "datasets/owner/toy"])
def test_mounts_are_found_in_the_new_and_the_old_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv(mounts.ROOT_VARIABLE, str(tmp_path))
    folder = tmp_path / "input" / place
    folder.mkdir(parents=True)
    (folder / "sample_submission.csv").touch()
    assert mounts.find_competition("sample_submission.csv") == folder


def test_mounts_that_are_absent_or_ambiguous_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mounts.ROOT_VARIABLE, str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / "input" / name).mkdir(parents=True)
        (tmp_path / "input" / name / "sample.csv").touch()
    with pytest.raises(KitError, match="sample.csv is in several attached folders"):
        mounts.find_competition("sample.csv")
    with pytest.raises(KitError, match=r"no folder attached under .* holds x.csv; attached: 'a', 'b'"):
        mounts.find_competition("x.csv")


def test_a_bundle_is_found_among_other_manifests_and_in_models(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mounts.ROOT_VARIABLE, str(tmp_path))
    other = tmp_path / "input" / "datasets" / "me" / "web-app"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text('{"name": "an app"}')
    mounted = tmp_path / "input" / "models" / "me" / "bundle" / "other" / "default" / "1"
    shutil.copytree(bundle_folder, mounted)
    assert mounts.find_bundle() == mounted


def test_a_competition_of_the_old_layout_gives_way_to_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mounts.ROOT_VARIABLE, str(tmp_path))
    for place in ("competitions/toy", "toy-copy"):
        (tmp_path / "input" / place / "meta").mkdir(parents=True)
        (tmp_path / "input" / place / "meta" / "sample.csv").touch()
    assert mounts.find_competition("meta/sample.csv") == tmp_path / "input" / "competitions" / "toy"


@pytest.mark.parametrize("place", ["notebooks/me/build", "datasets/me/engines", "build"])
@pytest.mark.parametrize("inside", ["", "engines"])
def test_engines_are_found_where_a_kernel_or_a_dataset_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, inside: str
) -> None:
    monkeypatch.setenv(mounts.ROOT_VARIABLE, str(tmp_path))
    folder = tmp_path / "input" / place / inside
    assert mounts.find_engines() is None
    (folder / "deeper" / "still").mkdir(parents=True)
    (folder / "deeper" / "still" / "engines.json").touch()
    assert mounts.find_engines() is None
    (folder / "engines.json").touch()
    assert mounts.find_engines() == folder


def test_engines_in_several_attached_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mounts.ROOT_VARIABLE, str(tmp_path))
    for name in ("a/engines", "b"):
        (tmp_path / "input" / "notebooks" / "me" / name).mkdir(parents=True)
        (tmp_path / "input" / "notebooks" / "me" / name / "engines.json").touch()
    with pytest.raises(DataError, match=r"engines.json is in several attached folders: .*a/engines', .*/b'; attach"):
        mounts.find_engines()


def test_a_system_without_memory_figures_changes_nothing(
    bundle_folder: Path, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_text

    def without_peak(path: Path, *arguments, **options) -> str:
        return "VmRSS: 1 kB" if str(path) == "/proc/self/status" else real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", without_peak)
    predict_submission(bundle_folder, test_data, tmp_path / "s.csv", say=quiet)
    assert (tmp_path / "s.csv").exists()


Answers = dict[str, Predictions]


@pytest.fixture(scope="module")
def test_images(mixed: tuple[Toy, list[Run], Path]) -> tuple[np.ndarray, np.ndarray]:
    """The ids and images of the hidden test."""
    toy, _, _ = mixed
    chunks = list(open_source(toy.task, "test", toy.hidden).chunks())
    return np.concatenate([chunk.ids for chunk in chunks]), np.concatenate([chunk.images for chunk in chunks])


@pytest.fixture(scope="module")
def answers(mixed: tuple[Toy, list[Run], Path], test_images: tuple[np.ndarray, np.ndarray]) -> tuple[Answers, Answers]:
    """What each run says of the hidden test by its exported members, rows in another order a run, and by torch."""
    from kaggle_kit.train.checkpoint import load_checkpoint
    from kaggle_kit.train.predict import predict_batches

    _, runs, folder = mixed
    ids, images = test_images
    members, exported, torch = open_bundle(folder).members, {}, {}
    for number, run in enumerate(runs):
        files = [folder / member.file for member in members if member.run == run.name]
        rows = np.roll(np.arange(len(ids)), number)
        probs = mean_probs([OnnxSession(file).run(images[rows]) for file in files])
        exported[run.name] = Predictions(ids=ids[rows], probs=probs, multilabel=("tags",))
        networks = [load_checkpoint(run.checkpoint(fold))[0] for fold in run.folds]
        probs = mean_probs([predict_batches(network, [images]) for network in networks])
        torch[run.name] = Predictions(ids=ids, probs=probs, multilabel=("tags",))
    return exported, torch


def random_blend_of(mixed: tuple[Toy, list[Run], Path], kind: MixKind) -> Blend:
    toy, runs, _ = mixed
    return random_blend(kind, toy.task, {run.name: run.oof() for run in runs})


def furthest(found: Predictions, expected: Predictions) -> float:
    """Return the largest difference of a probability."""
    probs = expected.align(found.ids).probs
    return max(float(np.abs(probs[head] - found.probs[head]).max()) for head in probs)


class TestMixes:
    @pytest.mark.parametrize("kind", get_args(MixKind))
    def test_every_cut_of_the_runs_is_mixed_and_decided_as_at_home(
        self, mixed: tuple[Toy, list[Run], Path], answers: tuple[Answers, Answers], tmp_path: Path, kind: MixKind
    ) -> None:
        toy, runs, folder = mixed
        blend, (exported, torch) = random_blend_of(mixed, kind), answers
        bundle, before = with_blend(folder, tmp_path / "bundle", blend), None
        for number in range(1, len(runs) + 1):
            predictor = Predictor(bundle, num_runs=number, say=quiet)
            predicted = predictor.predict(open_source(toy.task, "test", toy.hidden))
            found, cut = predicted.predictions, blend.first(number)
            assert furthest(found, blend_predictions(cut, exported)) < 1e-6
            assert furthest(found, blend_predictions(cut, torch)) < 1e-4
            expected = cut.decision.decide(
                blend_predictions(cut, exported).align(found.ids).probs, multilabel=("tags",)
            )
            decided = predictor.decide(predicted)
            assert all((decided[head] == expected[head]).all() for head in toy.task.heads)
            assert before is None or furthest(found, before) > 1e-3, "each cut has a mix of its own"
            before = found

    def test_a_mean_with_weights_of_each_head_is_computed(
        self, mixed: tuple[Toy, list[Run], Path], answers: tuple[Answers, Answers], tmp_path: Path
    ) -> None:
        toy, runs, folder = mixed
        blend = random_blend_of(mixed, "arithmetic")
        heads = {head: dataclasses.replace(mix, temperatures=()) for head, mix in blend.whole.heads.items()}
        last = dataclasses.replace(blend.whole, heads=heads)
        bundle = with_blend(
            folder, tmp_path / "bundle", dataclasses.replace(blend, prefixes=(*blend.prefixes[:-1], last))
        )
        found = Predictor(bundle, say=quiet).predict(open_source(toy.task, "test", toy.hidden)).predictions
        parts = [answers[0][run.name].align(found.ids).probs for run in runs]
        for head, mix in heads.items():
            mean = sum(weight * part[head] for weight, part in zip(mix.weights, parts, strict=True))
            assert np.abs(mean - found.probs[head]).max() < 1e-6
        assert len({mix.weights for mix in heads.values()}) == 3

    def test_the_first_runs_alone_are_loaded_named_and_submitted(
        self,
        mixed: tuple[Toy, list[Run], Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        toy, runs, folder = mixed
        blend = random_blend_of(mixed, "geometric")
        scored = dataclasses.replace(blend.prefixes[1], score=dataclasses.replace(runs[0].score, total=0.12345))
        blend = dataclasses.replace(blend, prefixes=(blend.prefixes[0], scored, blend.prefixes[2]))
        bundle = with_blend(folder, tmp_path / "bundle", blend)
        loaded: list[str] = []

        def load(path: Path, **options) -> OnnxSession:
            loaded.append(path.name)
            return OnnxSession(path, **options)

        monkeypatch.setattr(graphs, "OnnxSession", load)
        out, probs = tmp_path / "s.csv", tmp_path / "probs.npz"
        command = ["predict", str(bundle), str(toy.hidden), "--out", str(out), "--probs", str(probs), "--runs", "2"]
        assert main(command) == 0
        told = capsys.readouterr().out
        assert "run(s) all, first, the first 2 of 3: 3 member(s), out-of-fold macro_f1 0.1235\n" in told
        assert loaded == [f"member_{name}.onnx" for name in ("all_everything", "first_fold0", "first_fold1")]
        ids, decided = read_submission(toy.task, out)
        expected = scored.decision.decide(Predictions.load(probs).align(ids).probs, multilabel=("tags",))
        assert all((decided[head] == expected[head]).all() for head in toy.task.heads)
        assert main(["predict", str(bundle), str(toy.hidden), "--out", str(out), "--json"]) == 0
        whole = capsys.readouterr().out
        assert (
            f"run(s) all, first, second: 5 member(s), out-of-fold macro_f1 {open_bundle(bundle).oof_score:.4f}" in whole
        )
        assert json.loads(whole.splitlines()[-1])["images"] == 9

    @pytest.mark.parametrize("number", [0, 4])
    def test_runs_that_the_blend_has_not_are_refused(
        self, mixed: tuple[Toy, list[Run], Path], tmp_path: Path, number: int
    ) -> None:
        toy, _, folder = mixed
        with pytest.raises(SettingError, match=f"the first {number} runs were asked for; the blend has 1 to 3"):
            predict_submission(folder, toy.hidden, tmp_path / "s.csv", num_runs=number, say=quiet)

    @pytest.mark.parametrize("kind", get_args(MixKind))
    def test_a_broken_image_keeps_the_priors_whatever_the_mix(
        self, mixed: tuple[Toy, list[Run], Path], tmp_path: Path, kind: MixKind
    ) -> None:
        toy, _, folder = mixed
        predictor = Predictor(with_blend(folder, tmp_path / "bundle", random_blend_of(mixed, kind)), say=quiet)
        source = open_source(toy.task, "test", toy.hidden)

        class Damaged(WideParquetSource):
            def chunks(self, **options) -> Iterator[Chunk]:
                for chunk in super().chunks(**options):
                    broken = {name: "cut short" for name in ("Test_1", "Test_8") if name in chunk.ids}
                    yield dataclasses.replace(chunk, broken=broken)

        damaged = Damaged(source.files(), images=toy.task.images, stored=toy.task.stored)
        predicted, whole = predictor.predict(damaged), predictor.predict(source)
        assert set(predicted.broken) == {"Test_1", "Test_8"}
        for head, priors in predictor.bundle.priors.items():
            probs = predicted.predictions.probs[head]
            assert (probs[[1, 8]] == np.array(priors, np.float32)).all()
            assert (np.delete(probs, [1, 8], axis=0) == np.delete(whole.predictions.probs[head], [1, 8], axis=0)).all()

    @pytest.mark.parametrize("kind", ["geometric", "stack"])
    def test_class_shares_are_corrected_after_the_mix_and_before_the_rules(
        self, trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path, kind: MixKind
    ) -> None:
        toy, runs = trained
        blend = random_blend(kind, toy.task, {run.name: run.oof() for run in runs})
        bundle = with_blend(bundle_folder, tmp_path / "bundle", dataclasses.replace(blend, prior_shift=True))
        for number in (1, 2):
            predictor = Predictor(bundle, num_runs=number, say=quiet)
            predicted = predictor.predict(open_source(toy.task, "train", toy.data))
            images = np.concatenate([chunk.images for chunk in open_source(toy.task, "train", toy.data).chunks()])
            mixed_probs = blend_probs(blend.first(number), list(predictor.run_each(images).values()))
            priors = {head: np.array(shares) for head, shares in predictor.bundle.priors.items()}
            shifted, _ = shift_predictions(mixed_probs, priors, skip=np.zeros(len(images), bool))
            assert any(np.abs(shifted[head] - mixed_probs[head]).max() > 1e-3 for head in shifted)
            expected, found = blend.first(number).decision.decide(shifted), predictor.correct(predicted)
            assert all(np.abs(found[head] - shifted[head]).max() < 1e-4 for head in shifted)
            assert all((predictor.decide(predicted)[head] == expected[head]).all() for head in expected)

    def test_equal_runs_count_the_same_however_many_members_they_have(
        self, mixed: tuple[Toy, list[Run], Path], test_images: tuple[np.ndarray, np.ndarray]
    ) -> None:
        _, runs, folder = mixed
        predictor, images = Predictor(folder, say=quiet), test_images[1]
        assert predictor.blend == equal_blend([run.name for run in runs])
        parts = predictor.run_each(images)
        for head, probs in predictor.run(images).items():
            assert np.abs(np.mean([part[head] for part in parts.values()], axis=0) - probs).max() < 1e-6
