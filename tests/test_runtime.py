from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy, make_files, write_shard

from kaggle_kit.errors import DataError, KitError, SubmissionError
from kaggle_kit.runs import Run
from kaggle_kit.runtime import mounts
from kaggle_kit.runtime.bundle import open_bundle
from kaggle_kit.runtime.predictor import Predictor, predict_submission
from kaggle_kit.sources import open_source
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


def test_a_system_without_memory_figures_changes_nothing(
    bundle_folder: Path, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_text

    def without_peak(path: Path, *arguments, **options) -> str:
        return "VmRSS: 1 kB" if str(path) == "/proc/self/status" else real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", without_peak)
    predict_submission(bundle_folder, test_data, tmp_path / "s.csv", say=quiet)
    assert (tmp_path / "s.csv").exists()
