from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Toy, make_wide
from made_edits import relabel, written

from kaggle_kit.audit.findings import Finding, save_findings
from kaggle_kit.cli import main
from kaggle_kit.edits import (
    Edit,
    append_edit,
    apply_edits,
    describe_edits,
    edits_key,
    effective,
    make_edit,
    read_edited_labels,
    read_edits,
)
from kaggle_kit.errors import DataError
from kaggle_kit.folds import Folds, labels_hash, make_folds
from kaggle_kit.labels import read_labels, resolve_classes
from kaggle_kit.packing.competition import pack_train
from kaggle_kit.tables import read_columns, rows_of, write_rows
from kaggle_kit.task import Head, task_to_plain
from kaggle_kit.train.config import LoaderConfig, ModelConfig, TrainConfig
from kaggle_kit.train.crossval import prepare, train_run
from kaggle_kit.train.devices import make_fabric
from kaggle_kit.train.everything import train_everything
from kaggle_kit.train.rows import TrainData

TINY = TrainConfig(
    model=ModelConfig(name="test_resnet", input_size=(32, 48)), loader=LoaderConfig(batch_size=8), epochs=1
)


class TestEffective:
    def test_later_lines_win_and_what_is_undone_is_void(self) -> None:
        first, second, other = relabel("a", 1), relabel("a", 2), relabel("a", 0, "vowel")
        drop, keep = make_edit("drop", id="b", why="twin"), make_edit("keep", id="b")
        undo = make_edit("undo", of=second.key)
        edits = [first, second, other, drop]
        assert effective(edits).relabelled == {"a": {"root": "2", "vowel": "0"}}
        assert effective(edits).dropped == {"b": "twin"}
        found = effective([*edits, undo, keep])
        assert found.relabelled == {"a": {"root": "1", "vowel": "0"}}
        assert not found.dropped and found.kept == {"b"}
        again = make_edit("undo", of=undo.key)
        assert effective([*edits, undo, again]).relabelled == effective(edits).relabelled

    def test_the_key_tells_what_edits_do_and_not_how_they_came_about(self) -> None:
        once, more = [relabel("a", 1), make_edit("drop", id="b")], make_edit("drop", id="c")
        key = edits_key(once)
        assert key == edits_key([more, *once[::-1], make_edit("undo", of=more.key), make_edit("keep", id="d")])
        assert len({key, edits_key(once[:1]), edits_key(once[1:]), edits_key([relabel("a", 2), *once[1:]])}) == 4
        assert edits_key([]) == edits_key([make_edit("keep", id="a")]) == ""
        assert key == "f6ac432c4f56"  # runs on disk remember it

    def test_a_relabel_of_a_dropped_image_is_no_part_of_what_edits_do(self) -> None:
        drop, other = make_edit("drop", id="a"), relabel("b", 1)
        edits = [relabel("a", 1), drop, other]
        assert edits_key(edits) == edits_key([drop, other])
        assert describe_edits(edits) == f"1 image(s) relabelled, 1 dropped (hash {edits_key(edits)})"


def with_graphemes(toy: Toy, *, groups: str | None = "writer") -> Toy:
    """Return a toy with an auxiliary head and a multi-label one, each a column of its own."""
    table = read_columns(toy.data / "train.csv")
    rows = zip(*table.values(), strict=True)
    more = [[*row, f"g{row[1]}", "x|y" if number % 2 else ""] for number, row in enumerate(rows)]
    write_rows(toy.data / "train.csv", [*table, "grapheme", "tags"], more)
    tags = Head(name="tags", classes=("x", "y", "z"), kind="multilabel", separator="|")
    auxiliary = {"grapheme": Head(name="grapheme", classes="from_labels")}
    task = dataclasses.replace(toy.task, heads={**toy.task.heads, "tags": tags}, auxiliary=auxiliary, groups=groups)
    return dataclasses.replace(toy, task=task)


class TestApply:
    def test_labels_are_changed_and_images_left_out(self, wide: Toy) -> None:
        toy = with_graphemes(wide)
        task, labels = resolve_classes(toy.task, toy.data), read_labels(toy.task, toy.data)
        edits = [relabel("Train_7", 2), relabel("Train_7", "y|z", "tags"), relabel("Train_8", "g0", "grapheme")]
        edits += [relabel("Train_9", "", "tags"), make_edit("drop", id="Train_3"), make_edit("keep", id="Train_4")]
        found = apply_edits(labels, edits, task, path="edits.jsonl")
        assert found.ids.tolist() == [name for name in labels.ids.tolist() if name != "Train_3"]
        expected = labels.align(found.ids)
        expected.classes["root"][rows_of(np.array(["Train_7"]), found.ids)] = 2
        expected.classes["tags"][rows_of(np.array(["Train_7", "Train_9"]), found.ids)] = [[0, 1, 1], [0, 0, 0]]
        expected.auxiliary["grapheme"][rows_of(np.array(["Train_8"]), found.ids)] = 0
        for head, values in {**expected.classes, **expected.auxiliary}.items():
            assert np.array_equal({**found.classes, **found.auxiliary}[head], values), head
        assert found.edits == tuple(edits[:-1]) and found.groups is not None
        assert np.array_equal(found.groups, expected.groups)

    def test_groups_follow_the_head_whose_column_they_are(self, wide: Toy) -> None:
        toy = dataclasses.replace(wide, task=dataclasses.replace(wide.task, groups="root"))
        table = read_columns(toy.data / "train.csv")
        labels = apply_edits(read_labels(toy.task, toy.data), [relabel("Train_0", 2)], toy.task, path="f")
        assert labels.groups is not None and labels.groups[0] == "2"
        assert np.array_equal(labels.groups[1:], table["root"][1:])

    def test_edits_that_do_nothing_change_nothing(self, wide: Toy) -> None:
        labels = read_labels(wide.task, wide.data)
        drop = make_edit("drop", id="nobody")
        for edits in ([], [make_edit("keep", id="Train_1")], [drop, make_edit("undo", of=drop.key)]):
            assert apply_edits(labels, edits, wide.task, path="f") is labels

    @pytest.mark.parametrize(
        ("edit", "match"),
        [
            (make_edit("drop", id="Train_99"), "line 2: 'Train_99' is no labelled train image of 'toy-wide'"),
            (relabel("Test_0", 1), "line 2: 'Test_0' is no labelled"),
            (relabel("Train_1", 3), "line 2: head 'root' of 'Train_1' is '3'; expected one of its 3 classes"),
            (relabel("Train_1", ""), "line 2: head 'root' of 'Train_1' is ''"),
            (relabel("Train_1", 1, "rot"), "line 2: 'rot' is no head of 'toy-wide'; did you mean 'root'"),
            (relabel("Train_1", "x|q", "tags"), "line 2: head 'tags' of 'Train_1' is 'x.q', and 'q' is none"),
            (relabel("Train_1", "g7", "grapheme"), "line 2: head 'grapheme' of 'Train_1' is 'g7'"),
        ],
    )
    def test_an_unknown_id_head_or_class_names_its_line(
        self, wide: Toy, tmp_path: Path, edit: Edit, match: str
    ) -> None:
        toy = with_graphemes(wide)
        path = written(tmp_path / "edits.jsonl", make_edit("drop", id="Train_0"), edit)
        with pytest.raises(DataError, match=f"edits.jsonl {match}"):
            read_edited_labels(toy.task, toy.data, path)
        append_edit(path, make_edit("undo", of=edit.key))
        assert len(read_edited_labels(toy.task, toy.data, path)) == 47


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy competition with an auxiliary and a multi-label head, and a packed store and edits beside; read-only."""
    folder = tmp_path_factory.mktemp("edits")
    made = with_graphemes(make_wide(folder))
    (folder / "task.yaml").write_text(yaml.safe_dump(task_to_plain(made.task), sort_keys=False))
    pack_train(made.task, made.data, folder / "packed")
    root = read_labels(made.task, made.data).classes["root"]
    written(folder / "edits.jsonl", relabel("Train_7", (root[7] + 1) % 3), relabel("Train_8", "g0", "grapheme"))
    written(folder / "edits.jsonl", make_edit("drop", id="Train_9", why="two glyphs"), make_edit("keep", id="Train_2"))
    return made


@pytest.fixture
def edits(toy: Toy, tmp_path: Path) -> Path:
    """A copy of the toy's edits that may be added to."""
    path = tmp_path / "edits.jsonl"
    path.write_bytes((toy.data.parent / "edits.jsonl").read_bytes())
    return path


def folds_of(toy: Toy, edits: Path | None) -> Folds:
    return make_folds(read_edited_labels(toy.task, toy.data, edits), num_folds=2)


def ready_for(toy: Toy, edits: Path | None, folds: Folds | None = None) -> TrainData:
    config = dataclasses.replace(TINY, edits=edits and str(edits))
    folds = folds or folds_of(toy, edits)
    beside = toy.data.parent
    return prepare(toy.task, config, toy.data, folds, packed=None, beside=beside, fabric=make_fabric(config))[1]


class TestTraining:
    def test_what_train_sees_is_edited(self, toy: Toy, edits: Path) -> None:
        before, after = ready_for(toy, None), ready_for(toy, edits)
        row = {name: int(rows_of(np.array([name]), after.source.ids)[0]) for name in ("Train_7", "Train_8", "Train_9")}
        changed = {"root": [row["Train_7"]], "grapheme": [row["Train_8"]], "vowel": [], "tags": []}
        for head, values in {**after.by_row.classes, **after.by_row.auxiliary}.items():
            same = np.delete(np.arange(48), [*changed[head], row["Train_9"]])
            assert np.array_equal(values[same], {**before.by_row.classes, **before.by_row.auxiliary}[head][same]), head
        old = int(before.by_row.classes["root"][row["Train_7"]])
        assert after.by_row.classes["root"][row["Train_7"]] == (old + 1) % 3
        assert after.by_row.auxiliary["grapheme"][row["Train_8"]] == 0
        for fold in (-1, 0, 1):
            drawn = np.concatenate([after.train_rows(fold), after.valid_rows(fold)])
            assert sorted(drawn) == [one for one in range(48) if one != row["Train_9"]]

    def test_a_store_is_not_packed_again_after_an_edit(self, toy: Toy, edits: Path) -> None:
        assert ready_for(toy, edits).source.folder == toy.data.parent / "packed"

    def test_folds_and_training_must_have_the_same_edits(self, toy: Toy, edits: Path) -> None:
        plain, edited = folds_of(toy, None), folds_of(toy, edits)
        with pytest.raises(DataError, match=r"made without edits, and now edits of hash .*kaggle-kit folds .*--edits"):
            ready_for(toy, edits, plain)
        with pytest.raises(DataError, match=r"made with edits .hash .* none are given; give `edits` the file"):
            ready_for(toy, None, edited)
        append_edit(edits, make_edit("keep", id="Train_5"))
        ready_for(toy, edits, edited)
        append_edit(edits, relabel("Train_5", "g1", "grapheme"))
        with pytest.raises(DataError, match="made with edits .hash .* now edits of hash"):
            ready_for(toy, edits, edited)

    def test_no_edits_change_no_folds(self, toy: Toy, tmp_path: Path) -> None:
        path = written(tmp_path / "edits.jsonl", make_edit("keep", id="Train_2"))
        for number, folds in enumerate((folds_of(toy, None), folds_of(toy, path))):
            folds.save(tmp_path / f"{number}.parquet")
        assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
        assert Folds.load(tmp_path / "0.parquet").edits == ()

    def test_a_run_keeps_its_edits_and_goes_on_only_with_them(
        self, toy: Toy, edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = dataclasses.replace(TINY, edits=str(edits))
        out, places = tmp_path / "runs" / "a", {"data": toy.data, "beside": toy.data.parent}
        folds = folds_of(toy, edits)
        train_run(toy.task, config, folds=folds, out=out, only=0, **places)
        moved = edits.rename(tmp_path / "moved.jsonl")
        append_edit(moved, make_edit("keep", id="Train_3"))
        config = dataclasses.replace(config, edits=str(moved))
        run = train_run(toy.task, config, folds=folds, out=out, **places)
        assert sorted(run.folds) == [0, 1] and "Train_9" not in run.oof().ids
        assert run.config.edits == "edits.jsonl" and read_edits(out / "edits.jsonl") == read_edits(moved)[:3]
        assert run.fold_table().edits == tuple(read_edits(moved)[:3])
        capsys.readouterr()
        append_edit(moved, make_edit("drop", id="Train_10"))
        with pytest.raises(DataError, match="holds a run begun otherwise: `edits` was '.{12}', is now '.{12}'"):
            train_run(toy.task, config, folds=folds_of(toy, moved), out=out, **places)
        with pytest.raises(DataError, match="holds a run begun otherwise: `edits` was '.{12}', is now None"):
            train_run(toy.task, TINY, folds=folds_of(toy, None), out=out, **places)
        moved.unlink()
        again = dataclasses.replace(config, edits=str(out / "edits.jsonl"))
        assert train_run(toy.task, again, folds=run.fold_table(), out=out, **places).id == run.id
        everything = train_everything(run, out=tmp_path / "runs" / "all")
        assert read_edits(everything.folder / "edits.jsonl") == list(run.fold_table().edits)
        assert everything.config.edits == "edits.jsonl"


class TestCommands:
    def test_folds_pack_and_train_take_one_file(
        self, toy: Toy, edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        task, out, beside = str(toy.data.parent / "task.yaml"), tmp_path / "folds.parquet", toy.data.parent
        given = [task, str(toy.data), "--edits", str(edits)]
        assert main(["pack", *given, "--out", str(beside / "packed")]) == 0
        told = capsys.readouterr()
        assert f"{edits}: 2 image(s) relabelled, 1 dropped (hash " in told.out and "unchanged" in told.err
        packed = ["--packed", str(beside / "packed")]
        assert main(["folds", *given, "--out", str(out), "--n", "2", *packed, "--json"]) == 0
        labels = read_edited_labels(toy.task, toy.data, edits)
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["data_hash"] == labels_hash(labels)
        folds = Folds.load(out)
        assert folds.ids.tolist() == labels.ids.tolist() and folds.edits == labels.edits
        assert main(["folds", *given, "--check", str(out), *packed]) == 0
        assert main(["folds", *given[:2], "--check", str(out), *packed]) == 1
        assert "or check them with the --edits they were made with" in capsys.readouterr().out
        settings = [f"task={task}", f"data={toy.data}", f"folds={out}", f"packed={beside / 'packed'}"]
        settings += ["model=tiny_resnet", "model.input_size=[24,32]", "loader.batch_size=8", "epochs=1", "fold=0"]
        assert main(["train", *settings, f"out={tmp_path / 'a'}"]) == 2
        assert "none are given; give `edits` the file that the folds had" in capsys.readouterr().err
        assert main(["train", *settings, f"out={tmp_path / 'a'}", f"edits={edits}"]) == 0
        assert f"against labels as edited in {tmp_path / 'a' / 'edits.jsonl'}" in capsys.readouterr().out
        assert main(["show-augment", *settings, f"edits={edits}", "--out", str(tmp_path / "sheet.png")]) == 0

    @pytest.mark.parametrize("command", ["folds", "pack"])
    def test_a_wrong_line_is_named_before_any_work(
        self, toy: Toy, edits: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        append_edit(edits, make_edit("drop", id="Train_99"))
        out = tmp_path / ("new.parquet" if command == "folds" else "new")
        task = str(toy.data.parent / "task.yaml")
        assert main([command, task, str(toy.data), "--out", str(out), "--edits", str(edits)]) == 2
        assert f"{edits} line 5: 'Train_99' is no labelled train image" in capsys.readouterr().err
        assert not out.exists()

    def test_folds_keep_near_twins_together(self, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        audit = tmp_path / "audit"
        groups = [[0, 20], *([one, one + 10] for one in range(2, 10))]  # the store knows that 0 and 1 are equal
        found = [
            Finding(kind="near_duplicate", id=f"Train_{one}", split="train", group=number)
            for number, group in enumerate(groups)
            for one in group
        ]
        found.append(Finding(kind="near_duplicate", id="Train_30", split="test", group=0))
        save_findings(found, audit / "findings.parquet")
        task, out = str(toy.data.parent / "task.yaml"), tmp_path / "folds.parquet"
        given = [task, str(toy.data), "--packed", str(toy.data.parent / "packed"), "--audit", str(audit)]
        assert main(["folds", *given, "--out", str(out), "--n", "3"]) == 0
        assert "18 images in 9 group(s) of duplicates and near duplicates" in capsys.readouterr().out
        folds = Folds.load(out)
        for group in ([0, 1, 20], *groups[1:]):
            names = np.array([f"Train_{one}" for one in group])
            assert len(set(folds.fold[folds.rows(names)].tolist())) == 1, group
        twins = np.isin(folds.ids, ["Train_2", "Train_12"])
        apart = dataclasses.replace(
            folds, fold=np.where(twins & (folds.ids == "Train_2"), (folds.fold + 1) % 3, folds.fold)
        )
        apart.save(out)
        assert main(["folds", *given[:4], "--check", str(out)]) == 0
        assert main(["folds", *given, "--check", str(out)]) == 1
        assert "1 set(s) of equal images lie in several folds" in capsys.readouterr().out
