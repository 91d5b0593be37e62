from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_kit.blending.pool import Pool, join_predictions, make_pool
from kaggle_kit.errors import DataError, PredictionError, SettingError
from kaggle_kit.folds import Folds, make_folds
from kaggle_kit.labels import read_labels
from kaggle_kit.predictions import Predictions
from kaggle_kit.runs import Run
from kaggle_kit.scores import Score, SplitScore
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task, task_from_plain
from kaggle_kit.train.config import ModelConfig, TrainConfig

ROOTS = ("ka", "kha", "ga")
NUM_IMAGES = 60


def make_task(*, roots: tuple[str, ...] = ROOTS, groups: str | None = None, **changes: Any) -> Task:
    return task_from_plain(
        {
            "name": "toy",
            "heads": {"root": {"classes": list(roots), "weight": 2}, "vowel": {"classes": 2}},
            "metric": "macro_recall",
            "groups": groups,
            "images": {"format": "files", "folder": "images", "test_list": "test.csv"},
            "submission": {"form": "row_per_head"},
        }
        | changes
    )


def write_labels(folder: Path, *, num: int = NUM_IMAGES, wrong: int = 0) -> Path:
    """Write train.csv: combinations in turn, writers of 6 images; the first `wrong` images have another vowel."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[f"i{n}", ROOTS[n % 3], (n // 3) % 2 ^ (n < wrong), f"w{n // 6}"] for n in range(num)]
    write_rows(folder / "train.csv", ["image_id", "root", "vowel", "writer"], rows)
    return folder


def make_probs(task: Task, num: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.dirichlet(np.ones(head.num_classes), num).astype(np.float32) for name, head in task.heads.items()}


def make_run(folder: Path, data: Path, *, task: Task | None = None, folds: Folds | None = None, seed: int = 0) -> Run:
    """A finished run that was never trained: labels, folds and random out-of-fold predictions in the order of folds."""
    task = task or make_task()
    folds = folds or make_folds(read_labels(task, data), num_folds=3)
    folder.mkdir(parents=True)
    folds.save(folder / "folds.parquet")
    ids = folds.ids[np.argsort(folds.fold, kind="stable")][int((folds.fold < 0).sum()) :]
    Predictions(ids=ids, probs=make_probs(task, len(ids), seed)).save(folder / "oof.npz")
    score = SplitScore(all=Score(total=0.5, heads={}, rows=len(ids)))
    config = TrainConfig(model=ModelConfig(name="test_resnet"))
    return Run(folder=folder, task=task, config=config, data=data, packed=data, packed_key="", scores=score, folds={})


def rewrite(run: Run, **changes: Any) -> Run:
    """Write other out-of-fold predictions; return the run."""
    dataclasses.replace(run.oof(), **changes).save(run.oof_file)
    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "data")


@pytest.fixture
def pair(tmp_path: Path, data: Path) -> list[Run]:
    return [make_run(tmp_path / name, data, seed=seed) for seed, name in enumerate("ab")]


def by_id(pool: Pool, number: int, head: str) -> dict[str, list[float]]:
    return dict(zip(pool.ids.tolist(), pool.runs[number][head].tolist(), strict=True))


def stored(run: Run, head: str) -> dict[str, list[float]]:
    oof = run.oof()
    return dict(zip(oof.ids.tolist(), oof.probs[head].tolist(), strict=True))


class TestRuns:
    def test_runs_on_one_fold_file_are_joined_without_a_note(self, pair: list[Run]) -> None:
        pool = make_pool(pair)
        labels, folds = pair[0].labels(), pair[0].fold_table()
        assert pool.names == ("a", "b") and len(pool) == NUM_IMAGES and pool.notes == ()
        assert (pool.ids == pair[0].oof().ids).all()
        assert (pool.truth["root"] == labels.align(pool.ids).classes["root"]).all()
        assert (pool.parts == folds.align(pool.ids).fold).all() and not pool.unseen.any()
        assert pool.counts["root"].tolist() == [20, 20, 20] and pool.priors["vowel"].tolist() == [0.5, 0.5]
        assert pool.groups is None

    def test_one_run_is_a_pool(self, pair: list[Run]) -> None:
        assert make_pool(pair[:1]).names == ("a",)

    def test_another_order_of_rows_changes_nothing_that_has_an_id(self, pair: list[Run]) -> None:
        before = make_pool(pair)
        mixed = np.random.default_rng(1).permutation(NUM_IMAGES)
        oof = pair[1].oof()
        rewrite(pair[1], ids=oof.ids[mixed], probs={head: probs[mixed] for head, probs in oof.probs.items()})
        after = make_pool(pair)
        assert (before.ids == after.ids).all() and after.notes == ()
        assert all((a[h] == b[h]).all() for a, b in zip(before.runs, after.runs, strict=True) for h in a)

    def test_auxiliary_heads_are_not_looked_at(self, tmp_path: Path, data: Path, pair: list[Run]) -> None:
        task = make_task(auxiliary={"writer": {"classes": "from_labels"}})
        run = make_run(tmp_path / "c", data, task=task)
        pool = make_pool([run, pair[0]])
        assert pool.task == make_task() and list(pool.runs[0]) == ["root", "vowel"] and pool.notes == ()

    def test_groups_are_those_of_the_labels(self, tmp_path: Path, data: Path) -> None:
        run = make_run(tmp_path / "a", data, task=make_task(groups="writer"))
        pool = make_pool([run])
        numbers = [int(name[1:]) // 6 for name in pool.ids.tolist()]
        assert pool.groups is not None
        assert len(set(zip(numbers, pool.groups.tolist(), strict=True))) == len(set(numbers)) == 10

    def test_a_holdout_is_parted_into_fifths(self, tmp_path: Path, data: Path) -> None:
        folds = make_folds(read_labels(make_task(), data), "holdout", valid_share=0.5)
        pool = make_pool([make_run(tmp_path / "a", data, folds=folds)])
        assert sorted(np.unique(pool.parts).tolist()) == [0, 1, 2, 3, 4]
        assert pool.counts["root"].sum() == NUM_IMAGES > len(pool)


class TestClassesInAnotherOrder:
    turned = ("ga", "ka", "kha")

    def test_columns_are_joined_by_name(self, tmp_path: Path, data: Path, pair: list[Run]) -> None:
        other = make_run(tmp_path / "c", data, task=make_task(roots=self.turned), seed=5)
        pool = make_pool([pair[0], other])
        assert "run 'c' has the classes of head 'root' in another order; joined by name" in pool.notes
        found, own = by_id(pool, 1, "root"), stored(other, "root")
        assert all(found[name] == [own[name][1], own[name][2], own[name][0]] for name in found)
        assert by_id(pool, 1, "vowel") == stored(other, "vowel")
        assert pool.runs[1]["root"].flags.c_contiguous

    def test_whoever_comes_first_the_same_classes_score_the_same(
        self, tmp_path: Path, data: Path, pair: list[Run]
    ) -> None:
        other = make_run(tmp_path / "c", data, task=make_task(roots=self.turned), seed=5)
        one, two = make_pool([pair[0], other]), make_pool([other, pair[0]])
        right = [
            pool.runs[number]["root"][np.arange(len(pool)), pool.truth["root"]]
            for pool, number in ((one, 0), (one, 1), (two, 1), (two, 0))
        ]
        places = [
            dict(zip(pool.ids.tolist(), r, strict=True)) for pool, r in zip((one, one, two, two), right, strict=True)
        ]
        assert places[0] == places[2] and places[1] == places[3]

    def test_a_multilabel_head_s_columns_too(self, tmp_path: Path) -> None:
        write_rows(
            tmp_path / "data" / "train.csv",
            ["image_id", "tags"],
            [[f"i{n}", ["a", "b c", "", "a c"][n % 4]] for n in range(24)],
        )
        runs = []
        for name, tags in (("x", "abc"), ("y", "cab")):
            task = make_task(
                heads={"tags": {"classes": list(tags), "kind": "multilabel"}},
                metric="macro_f1",
                submission={"form": "row_per_image"},
            )
            run = make_run(tmp_path / name, tmp_path / "data", task=task)
            runs.append(rewrite(run, multilabel=("tags",)))
        pool = make_pool(runs)
        found, own = by_id(pool, 1, "tags"), stored(runs[1], "tags")
        assert all(found[name] == [own[name][1], own[name][2], own[name][0]] for name in found)
        assert pool.truth["tags"].shape == (24, 3) and pool.counts["tags"].tolist() == [12, 6, 12]

    def test_a_number_of_classes_and_their_names_are_the_same(
        self, tmp_path: Path, data: Path, pair: list[Run]
    ) -> None:
        heads = {"vowel": {"classes": ["1", "0"]}, "root": {"classes": list(ROOTS), "weight": 2}}
        other = make_run(tmp_path / "c", data, task=make_task(heads=heads), seed=5)
        pool = make_pool([pair[0], other])
        own = stored(other, "vowel")
        assert all(values == own[name][::-1] for name, values in by_id(pool, 1, "vowel").items())
        assert list(pool.runs[1]) == ["root", "vowel"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"heads": {"root": {"classes": list(turned), "kind": "ordinal"}}, "metric": "accuracy"},
            {"heads": {"root": {"classes": list(turned)}}, "metric": "quadratic_kappa"},
        ],
    )
    def test_an_order_that_counts_is_not_turned(self, pair: list[Run], changes: dict[str, Any]) -> None:
        other = dataclasses.replace(pair[1], task=make_task(**changes))
        heads = {"root": {**changes["heads"]["root"], "classes": list(ROOTS)}}
        first = dataclasses.replace(pair[0], task=make_task(**changes | {"heads": heads}))
        with pytest.raises(SettingError, match="in another order in run 'b' than in run 'a', and the order counts"):
            make_pool([first, other])

    def test_what_no_bundle_can_hold_together_is_blended_and_noted(self, pair: list[Run]) -> None:
        sizes = [{"height": 24, "width": width, "fit": "stretch"} for width in (32, 40)]
        runs = [dataclasses.replace(run, task=make_task(stored=s)) for run, s in zip(pair, sizes, strict=True)]
        pool = make_pool(runs)
        assert pool.notes == (
            "runs 'a' and 'b' cannot be in one bundle, for their tasks differ in `stored.width` (32 and 40): blend "
            "them to see what that gives, and train both on one task file to submit it",
        )


class TestRunsThatDoNotFit:
    def test_nothing_and_two_of_one_name_are_refused(self, tmp_path: Path, data: Path, pair: list[Run]) -> None:
        with pytest.raises(SettingError, match="no runs were given"):
            make_pool([])
        with pytest.raises(SettingError, match="tells them apart by name, so rename one folder"):
            make_pool([pair[0], make_run(tmp_path / "deeper" / "a", data)])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"metric": "accuracy"},
                "runs 'a' and 'b' have different heads or metrics: .* by macro_recall, and .* by acc",
            ),
            ({"heads": {"root": {"classes": list(ROOTS)}}}, r"\['root', 'vowel'\] by .* and \['root'\] by"),
            (
                {"heads": {"root": {"classes": list(ROOTS)}, "vowel": {"classes": 2}}},
                "head 'root' is multiclass of weight 2, and multiclass of weight 1",
            ),
            (
                {"heads": {"root": {"classes": list(ROOTS), "weight": 2, "kind": "ordinal"}, "vowel": {"classes": 2}}},
                "head 'root' is multiclass of weight 2, and ordinal of weight 2",
            ),
            (
                {"roots": ("ka", "kha")},
                "head 'root' has 2 classes in run 'b' and 3 in run 'a': 'b' lacks 'ga'; blend runs",
            ),
            ({"roots": ("ka", "kha", "ng", "ca")}, "'b' lacks 'ga' and has 'ng', 'ca' besides"),
        ],
    )
    def test_other_tasks_are_refused(self, pair: list[Run], changes: dict[str, Any], message: str) -> None:
        other = dataclasses.replace(pair[1], task=make_task(**changes))
        with pytest.raises(SettingError, match=message):
            make_pool([pair[0], other])

    def test_labels_that_have_changed_since_are_refused(self, data: Path, pair: list[Run]) -> None:
        write_labels(data, wrong=2)
        with pytest.raises(DataError, match="the labels in .* have changed since run 'a' was trained"):
            make_pool(pair)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ({"wrong": 4}, "4 of 60 images that both label are of other classes, the first 'i0'; 0 are labelled for"),
            ({"num": 30}, "0 of 30 images .*; 30 are labelled for the first alone, 0 for the second"),
            ({"num": 66}, "0 of 60 images .*; 0 are labelled for the first alone, 6 for the second"),
        ],
    )
    def test_another_label_file_is_refused_with_counts(
        self, tmp_path: Path, pair: list[Run], labels: dict[str, int], message: str
    ) -> None:
        other = make_run(tmp_path / "c", write_labels(tmp_path / "other", **labels))
        with pytest.raises(DataError, match=f"runs 'a' and 'c' were trained on different labels: {message}"):
            make_pool([pair[0], other])

    def test_the_same_labels_in_another_folder_are_the_same(self, tmp_path: Path, pair: list[Run]) -> None:
        assert make_pool([pair[0], make_run(tmp_path / "c", write_labels(tmp_path / "other"))]).notes == ()

    def test_other_groups_are_refused(self, tmp_path: Path, data: Path, pair: list[Run]) -> None:
        with pytest.raises(DataError, match="different labels: the groups of the 60 images differ"):
            make_pool([pair[0], make_run(tmp_path / "c", data, task=make_task(groups="writer"))])

    def test_another_seed_of_folds_is_joined_with_a_count(self, tmp_path: Path, data: Path, pair: list[Run]) -> None:
        folds = make_folds(read_labels(make_task(), data), num_folds=3, seed=7)
        other = make_run(tmp_path / "c", data, folds=folds, seed=5)
        moved = int((folds.fold != pair[0].fold_table().fold).sum())
        pool = make_pool([pair[0], other])
        (note,) = pool.notes
        assert 0 < moved < NUM_IMAGES
        assert f"run 'c' validated {moved} of 60 images in another fold than run 'a', whose folds are held out" in note
        assert (pool.parts == pair[0].fold_table().align(pool.ids).fold).all()
        assert by_id(pool, 1, "root") == stored(other, "root")

    def test_another_scheme_or_other_unseen_images_are_refused(
        self, tmp_path: Path, data: Path, pair: list[Run]
    ) -> None:
        folds = pair[0].fold_table()
        scheme = dataclasses.replace(folds, scheme="grouped", fold=(folds.fold + 1) % 3)
        other = make_run(tmp_path / "c", data, folds=scheme)
        with pytest.raises(DataError, match="different schemes, 'stratified' and 'grouped', which put 60 of 60 images"):
            make_pool([pair[0], other])
        by_chance = make_run(tmp_path / "d", data, folds=dataclasses.replace(folds, unseen=np.arange(60) < 5))
        assert not make_pool([pair[0], by_chance]).unseen.any()
        held_out = dataclasses.replace(folds, scheme="unseen")
        first = make_run(tmp_path / "e", data, folds=held_out)
        other = make_run(tmp_path / "f", data, folds=dataclasses.replace(held_out, unseen=np.arange(60) < 5))
        with pytest.raises(DataError, match="0 and 5 images are unseen, 5 of them in one of the two alone; train both"):
            make_pool([first, other])

    def test_two_runs_with_one_run_s_predictions_are_noted(self, tmp_path: Path, data: Path, pair: list[Run]) -> None:
        followed = str(pair[0].folder.resolve())
        more = [dataclasses.replace(make_run(tmp_path / name, data), like=followed) for name in "cd"]
        assert make_pool([more[0], pair[1]]).notes == ()
        (note,) = make_pool([pair[0], *more]).notes
        assert note.startswith("c, d and a have the out-of-fold predictions of one run")
        (note,) = make_pool(more).notes
        assert note.startswith("d and c have")


class TestPredictionsThatDoNotFit:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([np.nan, 0.5, 0.5], r"run 'b': .*oof.npz: head 'root': probs of '{id}' hold NaN \(class 0\)"),
            ([0.5, 0.4, 0.3], r"run 'b': .*head 'root': probs of '{id}' sum to 1.2000, not 1"),
            ([4.0, -2.0, 0.5], r"run 'b': .*head 'root': probs of '{id}' .*lowest -2.0000, highest 4.0000.* logits"),
        ],
    )
    def test_what_is_no_probability_names_run_head_id_and_value(
        self, pair: list[Run], value: list[float], message: str
    ) -> None:
        oof = pair[1].oof()
        probs = {**oof.probs, "root": oof.probs["root"].copy()}
        probs["root"][7] = value
        arrays = {f"probs/{head}": values for head, values in probs.items()}
        np.savez(pair[1].oof_file, ids=oof.ids, **arrays)
        with pytest.raises(PredictionError, match=message.format(id=oof.ids[7])):
            make_pool(pair)

    def test_repeated_ids_name_the_run(self, pair: list[Run]) -> None:
        oof = pair[1].oof()
        ids = oof.ids.copy()
        ids[1] = ids[0]
        np.savez(pair[1].oof_file, ids=ids, **{f"probs/{head}": values for head, values in oof.probs.items()})
        with pytest.raises(
            PredictionError, match=rf"run 'b': .*1 id\(s\) occur more than once: '{ids[0]}' \(2 times\)"
        ):
            make_pool(pair)

    def test_a_missing_class_or_head_is_named(self, pair: list[Run]) -> None:
        probs = make_probs(make_task(roots=("ka", "kha")), NUM_IMAGES, 0)
        rewrite(pair[1], probs=probs)
        with pytest.raises(PredictionError, match=r"run 'b': head 'root' has probs of 2 classes; expected 3 \('ka', "):
            make_pool(pair)
        rewrite(pair[1], probs={"root": make_probs(make_task(), NUM_IMAGES, 0)["root"]})
        with pytest.raises(PredictionError, match="run 'b' has no probs of head 'vowel', only of 'root'"):
            make_pool(pair)

    @pytest.mark.parametrize("halved", [0, 1])
    def test_half_of_the_images_is_refused_or_blended_on_what_all_have(self, pair: list[Run], halved: int) -> None:
        whole, half = pair[1 - halved], pair[halved]
        missing = whole.oof().ids[::2]
        rewrite(half, **vars(half.oof().align(half.oof().ids[1::2])))
        name = half.name
        message = f"run '{name}' lacks predictions of 30 of the 60 images that run '{whole.name}' .*, the first "
        with pytest.raises(PredictionError, match=f"{message}'{missing[0]}'; train its other folds, .*`--common`"):
            make_pool(pair)
        pool = make_pool(pair, common_only=True)
        assert set(pool.ids.tolist()) == set(half.oof().ids.tolist()) and len(pool) == 30
        assert pool.notes == (f"blended on the 30 images that all runs predict; left out are 30 of {whole.name}",)
        assert pool.counts["root"].sum() == 60, "train is not made smaller"
        assert all(by_id(pool, n, "root").items() <= stored(pair[n], "root").items() for n in range(2))

    @pytest.mark.parametrize("shared", [0, 1])
    def test_runs_that_share_too_few_images_are_refused(self, pair: list[Run], shared: int) -> None:
        ids = pair[0].oof().ids
        rewrite(pair[0], **vars(pair[0].oof().align(ids[: 20 + shared])))
        rewrite(pair[1], **vars(pair[1].oof().align(ids[20:])))
        with pytest.raises(
            PredictionError, match=rf"{shared} image\(s\) are predicted by all runs \('a' {20 + shared}, 'b' 40\)"
        ):
            make_pool(pair, common_only=True)


def known(num: int = NUM_IMAGES) -> dict[str, Any]:
    """What is known of so many images, by id."""
    rows = np.arange(num)
    return {
        "ids": np.array([f"i{n}" for n in rows]),
        "truth": {"root": rows % 3, "vowel": (rows // 3) % 2},
        "folds": rows % 4,
    }


def predicted(ids: np.ndarray, seed: int = 0) -> Predictions:
    return Predictions(ids=ids, probs=make_probs(make_task(), len(ids), seed))


def join(values: Mapping[str, Any], runs: int = 2, **changes: Any) -> Pool:
    members = {f"r{n}": predicted(values["ids"], n) for n in range(runs)}
    return join_predictions(make_task(), members, **{**values, **changes})


class TestJoinPredictions:
    @pytest.mark.parametrize("runs", [1, 2, 20])
    def test_arrays_in_order_are_taken_as_they_are(self, runs: int) -> None:
        members = {f"r{n}": predicted(known()["ids"], n) for n in range(runs)}
        pool = join_predictions(make_task(), members, **known())
        for one, own in zip(members.values(), pool.runs, strict=True):
            assert all(own[head] is one.probs[head] for head in own)

    def test_labels_may_come_in_any_order_and_for_more_images(self) -> None:
        values, mixed = known(), np.random.default_rng(0).permutation(NUM_IMAGES)
        members = {"x": predicted(values["ids"][:20])}
        shuffled = {
            "ids": values["ids"][mixed],
            "truth": {head: classes[mixed] for head, classes in values["truth"].items()},
            "folds": values["folds"][mixed],
            "unseen": mixed < 3,
        }
        pool = join_predictions(make_task(), members, **shuffled)
        assert (pool.truth["root"] == values["truth"]["root"][:20]).all() and (pool.parts == np.arange(20) % 4).all()
        assert pool.unseen.tolist() == [True] * 3 + [False] * 17
        assert pool.counts["root"].tolist() == [20, 20, 20]

    def test_counts_of_train_take_the_place_of_the_labels_(self) -> None:
        counts = {"root": np.array([1, 2, 5]), "vowel": np.array([3, 1])}
        pool = join(known(), counts=counts)
        assert pool.counts["root"].tolist() == [1, 2, 5] and pool.priors["vowel"].tolist() == [0.75, 0.25]
        with pytest.raises(DataError, match=r"head 'vowel': counts have shape \(3,\) and sum 3"):
            join(known(), counts=counts | {"vowel": np.ones(3)})

    def test_one_fold_is_parted_into_fifths_that_keep_groups_and_classes(self) -> None:
        values = known() | {"folds": np.zeros(NUM_IMAGES, np.int64)}
        sizes = [np.bincount(join(values).truth["root"][join(values).parts == part]) for part in range(5)]
        assert np.ptp(sizes) <= 1
        groups = np.arange(NUM_IMAGES) // 4 + 100
        pool = join(values, groups=groups)
        assert len(set(zip(groups, pool.parts.tolist(), strict=True))) == len(set(groups))
        assert pool.groups is not None and pool.groups.max() == 14

    def test_the_same_join_twice_is_the_same(self) -> None:
        values = known() | {"folds": np.zeros(NUM_IMAGES, np.int64)}
        assert (join(values).parts == join(values).parts).all()

    def test_a_single_group_is_none(self) -> None:
        pool = join(known(), groups=np.zeros(NUM_IMAGES, np.int64))
        assert pool.groups is None and "all 60 images are of one group" in pool.notes[0]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"folds": np.zeros(3, np.int64)}, r"`folds` are int64 \(3,\); expected \(60,\), one number an id"),
            ({"folds": np.full(60, np.nan)}, "`folds` are float64"),
            ({"groups": np.zeros((60, 1), np.int64)}, r"`groups` are int64 \(60, 1\)"),
            ({"unseen": np.zeros(60)}, "`unseen` are float64"),
            ({"folds": np.arange(60) % 4 - 1}, r"15 of 60 predicted images were held out by no fold \(-1\): 'i0', "),
            ({"truth": {"root": np.arange(60) % 3}}, "head 'vowel' has no truth, only 'root'; give"),
            (
                {"truth": {"root": np.arange(60) % 4, "vowel": np.arange(60) % 2}},
                r"head 'root': truth has shape \(60,\), up to 3; expected \(N,\) from 0 to 2",
            ),
            ({"truth": {"root": np.full(60, -1), "vowel": np.arange(60) % 2}}, r"60 label\(s\) are below 0"),
            ({"truth": {"root": np.zeros(60), "vowel": np.arange(60) % 2}}, "head 'root': labels are float64"),
            (
                {"truth": {"root": np.zeros((60, 3), np.uint8), "vowel": np.arange(60) % 2}},
                r"head 'root': truth has shape \(60, 3\)",
            ),
        ],
    )
    def test_what_is_known_must_fit(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            join(known(), **changes)

    def test_ids_are_labelled_once(self) -> None:
        members, values = {"x": predicted(known()["ids"])}, known(NUM_IMAGES - 2)
        with pytest.raises(DataError, match="2 of 60 predicted images have no label: 'i58', 'i59'; give the labels"):
            join_predictions(make_task(), members, **values)
        ids = np.array([*values["ids"][:-1], "i0"])
        with pytest.raises(DataError, match=r"`ids` holds 1 id\(s\) more than once: 'i0'"):
            join_predictions(make_task(), members, **values | {"ids": ids})

    def test_nothing_or_one_image_is_refused(self) -> None:
        with pytest.raises(SettingError, match="give the predictions of at least one"):
            join_predictions(make_task(), {}, **known())
        with pytest.raises(PredictionError, match=r"1 image\(s\) are predicted by all runs \('r0' 1, 'r1' 1\)"):
            join(known(1))

    def test_a_multilabel_head_s_predictions_must_be_so(self) -> None:
        one = predicted(known()["ids"])
        with pytest.raises(
            PredictionError, match="run 'x': head 'root' is multiclass in task 'toy', and .* are multi-"
        ):
            join_predictions(make_task(), {"x": dataclasses.replace(one, multilabel=("root",))}, **known())

    def test_further_heads_are_left_out(self) -> None:
        one = predicted(known()["ids"])
        more = dataclasses.replace(one, probs={"writer": one.probs["vowel"], **one.probs})
        pool = join_predictions(make_task(), {"x": more}, **known())
        assert list(pool.runs[0]) == ["root", "vowel"]

    def test_a_class_that_is_never_true_is_kept(self) -> None:
        truth = {"root": np.zeros(60, np.int64), "vowel": np.zeros(60, np.int64)}
        pool = join(known(), truth=truth)
        assert pool.counts["root"].tolist() == [60, 0, 0] and pool.priors["vowel"].tolist() == [1, 0]


class TestPool:
    def test_some_of_the_runs_share_arrays_in_the_order_asked(self) -> None:
        pool = join(known(), runs=4)
        some = pool.of(["r2", "r0"])
        assert some.names == ("r2", "r0") and some.runs[0] is pool.runs[2] and some.truth is pool.truth

    @pytest.mark.parametrize("names", [[], ["r0", "r9"]])
    def test_runs_that_it_has_not_are_refused(self, names: list[str]) -> None:
        with pytest.raises(SettingError, match=r"were asked for; the pool has \['r0', 'r1'\]: name some of them"):
            join(known()).of(names)


def test_images_that_training_left_out_as_broken_are_left_out_of_the_pool_too(tmp_path: Path) -> None:
    data = write_labels(tmp_path / "data")
    folds = make_folds(read_labels(make_task(), data), num_folds=3)
    kept = np.arange(len(folds.ids)) != 5
    without = dataclasses.replace(folds, ids=folds.ids[kept], fold=folds.fold[kept], unseen=folds.unseen[kept])
    runs = [make_run(tmp_path / name, data, folds=without, seed=seed) for seed, name in enumerate("ab")]
    pool = make_pool(runs)
    assert sorted(pool.ids) == sorted(without.ids)
    assert "1 labelled image(s) are in no fold of run 'a', broken ones as a rule" in pool.notes
