"""The commands around training, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import huggingface_hub
import pytest
import timm
import yaml
from conftest import Toy, make_wide
from safetensors.torch import save_file

from kaggle_kit import train_command
from kaggle_kit.cli import main
from kaggle_kit.errors import Interrupted
from kaggle_kit.folds import make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.runs import Run, read_run
from kaggle_kit.task import task_to_plain

FAST = ["model=tiny_resnet", "model.input_size=[24,32]", "loader.batch_size=8", "epochs=1", "fold=0"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy competition with a task file, folds and a packed store beside its data; read-only."""
    folder = tmp_path_factory.mktemp("commands")
    made = make_wide(folder)
    (folder / "task.yaml").write_text(yaml.safe_dump(task_to_plain(made.task)))
    make_folds(read_labels(made.task, made.data), num_folds=2).save(folder / "folds.parquet")
    pack_train(made.task, made.data, beside=folder)
    return made


@pytest.fixture
def places(toy: Toy) -> list[str]:
    """Where task, data and folds are, as settings."""
    folder = toy.data.parent
    return [f"task={folder / 'task.yaml'}", f"data={toy.data}", f"folds={folder / 'folds.parquet'}"]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command with a mistake ends with."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert not told.out and "Traceback" not in told.err
    *before, line = told.err.strip().splitlines()
    assert line.startswith("kaggle-kit: ") and not any(one.startswith("kaggle-kit: ") for one in before)
    return line


class TestTrain:
    def test_settings_are_printed_and_nothing_is_trained(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "--settings", "--json"]) == 0
        *lines, last = capsys.readouterr().out.strip().splitlines()
        assert last == "{}"
        values = yaml.safe_load("\n".join(lines))
        assert {"epochs", "optim", "pseudo", "like"} <= set(values) and values["optim"]["lr"] == 2e-3

    def test_every_combination_is_trained_and_ranked(
        self, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "runs"
        assert main(["train", *places, *FAST, f"out={out}", "optim.lr=1e-3,1e-2", "--multirun", "--json"]) == 0
        *lines, last = capsys.readouterr().out.strip().splitlines()
        runs = {name: read_run(out / name) for name in ("optim.lr=0.001", "optim.lr=0.01")}
        assert [runs[name].config.optim.lr for name in runs] == [1e-3, 1e-2]
        best_first = sorted(runs, key=lambda name: -runs[name].score.total)
        assert [line.split()[0] for line in lines[-2:]] == best_first
        assert all(f"{runs[name].score.total:.4f}" in line for name, line in zip(best_first, lines[-2:], strict=True))
        assert set(json.loads(last)["runs"]) == set(runs) and json.loads(last)["failed"] == {}

    def test_a_training_that_fails_is_told_and_stops_no_other(
        self, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "runs"
        assert main(["train", *places, *FAST, f"out={out}", "loader.batch_size=40,4", "-m", "--json"]) == 1
        *lines, last = capsys.readouterr().out.strip().splitlines()
        found = json.loads(last)
        assert list(found["runs"]) == ["loader.batch_size=4"] and list(found["failed"]) == ["loader.batch_size=40"]
        assert "`loader.batch_size` is 40, and fold 0 trains on 24 images" in found["failed"]["loader.batch_size=40"]
        assert lines[-1].startswith("loader.batch_size=40  failed: ")
        assert [path.name for path in out.iterdir()] == ["loader.batch_size=4"]

    def test_ctrl_c_ends_all_of_them(
        self,
        places: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        begun = []

        def interrupted(experiment: object) -> None:
            begun.append(experiment)
            raise Interrupted("interrupted in epoch 1")

        monkeypatch.setattr(train_command, "_train", interrupted)
        assert main(["train", *places, *FAST, f"out={tmp_path}", "seed=range(3)", "-m"]) == 2
        assert len(begun) == 1 and "interrupted in epoch 1" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (["seed=3"], "--multirun needs a list of values, such as optim.lr=1e-3,3e-3"),
            (["optim.lrr=1e-3,1e-2"], "`optim.lrr` is not a setting; did you mean 'optim.lr'?"),
            (["epochs=1,0"], "`epochs` is 0; expected 1 to 10000"),
            (["epochs=1,2", "augment"], "'augment' has no '='"),
        ],
    )
    def test_slips_are_told_before_the_first_of_several_is_trained(
        self,
        places: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        settings: list[str],
        message: str,
    ) -> None:
        assert message in error_of(["train", *places, f"out={tmp_path / 'out'}", *settings, "-m"], capsys)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (["data=nowhere"], "nowhere"),
            (["task=nowhere.yaml"], "there is no task file 'nowhere.yaml'"),
            (["folds=nowhere.parquet"], "there is no fold file 'nowhere.parquet'"),
            (["packed=s3://mine"], "'s3://mine' is an address, not a folder"),
            (["model.name=resnet19"], "`model.name` is 'resnet19', which timm"),
            (["model.input_size=[8,8]"], "`input_size` is [8, 8]; each side must be at least 16 pixels"),
            (["model.weights=w.safetensors"], "set model.pretrained=true to use them"),
            (["optim.name=adamm"], "`optim.name` is 'adamm'"),
            (["optim.frozen_lr=1e-3"], "`freeze_epochs` is 0; say how many epochs are frozen"),
            (["optim.freeze_epochs=1"], "`optim.freeze_epochs` is 1 of 1 epochs; leave at least one for the rest"),
            (["schedule.small_epochs=1"], "`small_size` and `small_epochs` go together"),
            (["loss.name=hinge"], "`loss.name` is 'hinge'"),
            (["+loss.head_weights.roott=2"], "`loss.head_weights.roott` is for no head of task 'toy-wide'"),
            (["+loss.head_weights={root:0,vowel:0}"], "`loss.head_weights` is 0 for every head"),
            (["sampling.head=root"], "which 'shuffle' does not use; leave it empty"),
            (["augment=nonsense"], "nonsense"),
            (["augment=missing.yaml"], "missing.yaml"),
            (["average.soup=1"], "`soup` is 1; a soup takes at least 2 epochs"),
            (["mix.share=2"], "`share` is 2"),
            (["loader.batch_size=25"], "`loader.batch_size` is 25, and fold 0 trains on 24 images; lower it"),
            (["loader.micro_batch=9"], "`micro_batch` is 9; expected 1 to 8"),
            (["log.to=[mlflow]"], "`log.to"),
            (["log.gradients=true"], "`gradients` needs somebody to tell"),
            (["fold=2"], "`fold` is 2; the fold file has folds 0 to 1"),
            (["overwrite=maybe"], "`overwrite` is 'maybe'; expected true or false"),
            (["pseudo.predictions=nowhere.npz"], "nowhere.npz is missing"),
            (["pseudo.floor=2"], "`floor` is 2"),
            (["max_hours=0"], "`max_hours` is 0"),
            (["device.precision=int8"], "`device.precision` is 'int8'"),
        ],
    )
    def test_bad_input_is_one_line_and_claims_no_folder(
        self,
        places: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        settings: list[str],
        message: str,
    ) -> None:
        assert message in error_of(["train", *places, *FAST, f"out={tmp_path / 'out'}", *settings], capsys)
        assert not (tmp_path / "out").exists()

    def test_folds_of_other_labels_are_refused(
        self, wide: Toy, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        labels = wide.data / "train.csv"
        labels.write_text(labels.read_text().replace("Train_2,1,", "Train_2,2,"))
        line = error_of(["train", *places, *FAST, f"data={wide.data}", f"packed={tmp_path / 'p'}", "out=o"], capsys)
        assert "the folds were made from other labels" in line and "`kaggle-kit folds`" in line


class TestLrFind:
    def test_a_plot_is_drawn_and_a_rate_suggested_or_a_sentence_said(
        self, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "lr.png"
        command = ["lr-find", *places, *FAST, "--out", str(out), "--low", "1e-5", "--high", "1", "--steps", "30"]
        assert main([*command, "--json"]) == 0
        *lines, last = capsys.readouterr().out.strip().splitlines()
        assert cv2.imread(str(out)) is not None
        found = json.loads(last)
        if found["suggestion"] is None:
            assert lines[0].startswith("no slope found: ")
        else:
            assert 1e-5 <= found["suggestion"] <= 1
            assert lines[1] == f"train with optim.lr={found['suggestion']:.2g}; {out} shows the curve"

    def test_mixing_freezing_and_small_images_are_those_of_the_first_epoch(
        self, places: list[str], tmp_path: Path
    ) -> None:
        settings = ["epochs=3", "mix.mixup=0.4", "optim.freeze_epochs=1", "schedule.small_size=[16,16]"]
        settings += ["schedule.small_epochs=1", "loss.class_weights=sqrt", "sampling.name=per-head", "log.to=[wandb]"]
        command = ["lr-find", *places, *FAST, *settings, "--out", str(tmp_path / "lr.png"), "--steps", "20"]
        assert main(command) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--out", "lr.jpg"], "lr.jpg does not end in .png; write to lr.png"),
            (["--steps", "5"], "the range test has 5 steps; give it at least 20"),
            (["--low", "1", "--high", "1"], "the range test goes from 1 to 1; expected 0 < low < high"),
            (["loader.batch_size=25"], "`loader.batch_size` is 25, and fold 0 trains on 24 images"),
            (["fold=7"], "`fold` is 7; the fold file has folds 0 to 1"),
            (["model.derive_from=pair"], "`model.derive_from` is 'pair', which is no auxiliary head"),
        ],
    )
    def test_what_cannot_be_tested_is_one_line(
        self,
        places: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        words: list[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert message in error_of(["lr-find", *places, *FAST, *words], capsys)
        assert not list(tmp_path.iterdir())

    def test_folds_are_needed(self, places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        line = error_of(["lr-find", *places[:2]], capsys)
        assert "`folds` is missing; give task=TASK data=DIR folds=FILE" in line

    def test_derived_heads_are_derived_as_in_training(
        self, wide: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from kaggle_kit.train import range_test

        table = wide.data / "train.csv"
        head, *rows = table.read_text().splitlines()
        pairs = [f"{row},{''.join(row.split(',')[1:3])}" for row in rows]
        table.write_text("\n".join([f"{head},pair", *pairs]) + "\n")
        values = task_to_plain(wide.task) | {"auxiliary": {"pair": {"classes": "from_labels"}}}
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(values))
        make_folds(read_labels(wide.task, wide.data), num_folds=2).save(tmp_path / "folds.parquet")
        jobs = []
        assemble = range_test.assemble
        monkeypatch.setattr(range_test, "assemble", lambda job, fabric: jobs.append(job) or assemble(job, fabric))
        settings = [f"task={tmp_path / 'task.yaml'}", f"data={wide.data}", f"folds={tmp_path / 'folds.parquet'}"]
        words = [*settings, *FAST, "model.derive_from=pair", "--steps", "20", "--out", str(tmp_path / "lr.png")]
        assert main(["lr-find", *words]) == 0
        assert {name: classes.tolist() for name, classes in jobs[0].derivation.items()} == {
            "root": [0, 0, 1, 1, 2, 2],
            "vowel": [0, 1, 0, 1, 0, 1],
        }


class TestShowAugment:
    @pytest.mark.parametrize(
        ("settings", "files"),
        [
            (["augment=strong"], ["sheet.png"]),
            (["augment=none", "mix.cutmix=1", "mix.mixup=0.4"], ["sheet.png", "sheet_mixed.png"]),
        ],
    )
    def test_pictures_are_drawn(
        self,
        toy: Toy,
        places: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        settings: list[str],
        files: list[str],
    ) -> None:
        packed = f"packed={next((toy.data.parent / 'packed_images').glob('*/pack.json')).parent}"
        words = ["--images", "3", "--versions", "2", "--out", str(tmp_path / "sheet.png"), "--json"]
        assert main(["show-augment", *places[:2], packed, *settings, *words]) == 0
        assert last_json(capsys)["files"] == [str(tmp_path / name) for name in files]
        assert sorted(path.name for path in tmp_path.iterdir()) == files
        assert all(cv2.imread(str(tmp_path / name)) is not None for name in files)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--images", "0"], "--images is 0; expected 1 to 100"),
            (["--versions", "101"], "--versions is 101; expected 1 to 100"),
            (["--out", "sheet.jpg"], "sheet.jpg does not end in .png"),
            (["augment=stronger"], "stronger"),
            (["data=nowhere"], "nowhere"),
        ],
    )
    def test_what_cannot_be_drawn_is_one_line(
        self,
        places: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        words: list[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert message in error_of(["show-augment", *places, *words], capsys)
        assert not list(tmp_path.iterdir())

    def test_data_are_needed(self, places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert "`data` is missing; give task=TASK data=DIR" in error_of(["show-augment", places[0]], capsys)


class TestWeights:
    @pytest.fixture(autouse=True)
    def no_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty hub cache, and a hub that must not be asked."""

        def asked(*_arguments: object, **_options: object) -> None:
            raise AssertionError("asks the network")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", asked)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)

    def test_what_a_model_needs_is_listed_without_a_network(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["weights", "test_resnet", "resnet50.a1_in1k", "--json"]) == 0
        first, second, last = capsys.readouterr().out.strip().splitlines()
        expected = "test_resnet: timm/test_resnet.r160_in1k/model.safetensors, not on this machine, apache-2.0"
        assert first == expected and second.startswith("resnet50.a1_in1k: timm/resnet50.a1_in1k/model.safetensors, ")
        assert [one["model"] for one in json.loads(last)["weights"]] == ["test_resnet", "resnet50.a1_in1k"]

    def test_a_file_is_packed_and_trained_from(
        self, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mine, folder = tmp_path / "mine.safetensors", tmp_path / "weights"
        save_file(timm.create_model("test_resnet").state_dict(), mine)
        assert main(["weights", "test_resnet", "--from", str(mine), "--out", str(folder), "--json"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert json.loads(told[-1])["files"] == [str(folder / "test_resnet.safetensors")]
        assert told[1].startswith(f"train with model.pretrained=true model.weights={folder};")
        pretrained = ["model.pretrained=true", f"model.weights={folder}"]
        assert main(["train", *places, *FAST, *pretrained, f"out={tmp_path / 'run'}"]) == 0
        assert read_run(tmp_path / "run").config.model.weights == str(folder)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["resnet19"], "`model.name` is 'resnet19', which timm"),
            (["resnet18", "--from", "mine.safetensors"], "--from says what to pack; say with --out where to"),
            (["resnet18", "--from", "nowhere", "--out", "w"], "nowhere"),
        ],
    )
    def test_what_cannot_be_had_is_one_line(
        self, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        assert message in error_of(["weights", *words], capsys)


class TestSweep:
    def test_trials_are_trained_ranked_and_gone_on_with(
        self, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("optuna")
        command = ["sweep", *places, *FAST, f"out={tmp_path / 's'}", "optim.lr=log(1e-4,1e-2)", "--json"]
        assert main([*command, "--trials", "2"]) == 0
        told = capsys.readouterr().out.strip().splitlines()
        trials = json.loads(told[-1])["trials"]
        assert [trial["state"] for trial in trials] == ["complete"] * 2
        for trial in trials:
            run = read_run(tmp_path / "s" / trial["folder"])
            assert run.score.total == trial["score"] and run.config.optim.lr == float(trial["settings"]["optim.lr"])
        assert any(line.startswith("the best again: kaggle-kit train") for line in told)
        assert {"trials.csv", "best.yaml", "sweep.png"} <= {path.name for path in (tmp_path / "s").iterdir()}
        assert main([*command, "--trials", "2"]) == 0
        assert last_json(capsys)["trials"] == trials

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["optim.lrr=log(1e-4,1e-2)"], "`optim.lrr` is not a setting; did you mean 'optim.lr'"),
            (["optim.lr=log(1e-2,1e-4)"], "the low end 0.01 is not below the high end 0.0001"),
            (["epochs=int(1,2)", "--trials", "0"], "--trials is 0; a sweep needs at least 1"),
            (["--space", "nowhere.yaml"], "there is no space file"),
        ],
    )
    def test_slips_are_one_line(
        self,
        places: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        message: str,
    ) -> None:
        pytest.importorskip("optuna")
        assert message in error_of(["sweep", *places, f"out={tmp_path / 's'}", *words], capsys)
        assert not (tmp_path / "s").exists()


class TestBaseline:
    @pytest.mark.slow
    def test_what_was_recorded_is_found_again_and_a_lower_score_is_exit_code_1(
        self, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "b.json"
        assert main(["baseline", "record", *places, *FAST, "--file", str(file), "--seeds", "3", "--json"]) == 0
        recorded = last_json(capsys)["baseline"]
        assert recorded["metric"] == "macro_recall" and len(recorded["scores"]) == 3
        assert main(["baseline", "check", "--file", str(file), "--seeds", "1"]) == 0
        assert capsys.readouterr().out.startswith("IDENTICAL: the same scores to the last bit for the same 1 seed")
        values = json.loads(file.read_text())
        for number, score in enumerate(values["scores"]):
            score["total"] = 2.0 + number / 1000
        file.write_text(json.dumps(values))
        assert main(["baseline", "check", "--file", str(file), "--seeds", "1", "--json"]) == 1
        assert last_json(capsys)["outcome"] == "worse"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["record", "--seeds", "2"], "--seeds is 2; seed noise needs at least 3 seeds"),
            (["record", "--file", "b.yaml"], "b.yaml does not end in .json"),
            (["record", "like=runs/a"], "`like` trains on everything, which gives no score"),
            (["record", "epochss=3"], "`epochss` is not a setting; did you mean 'epochs'?"),
            (["check", "epochs=3"], "check trains the recipe that was recorded; leave settings out"),
            (["check", "--file", "nowhere.json"], "there is no baseline 'nowhere.json'"),
        ],
    )
    def test_slips_are_one_line(
        self, places: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        assert message in error_of(["baseline", *words], capsys)


def test_the_weights_that_a_run_needs_are_listed_by_its_folder(
    trained: tuple[Toy, list[Run]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", str(trained[1][0].folder), "--json"]) == 0
    (needed,) = json.loads(capsys.readouterr().out.splitlines()[-1])["weights"]
    assert needed["model"] == trained[1][0].config.model.name
