from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import Toy, wide_task
from sklearn import metrics as sk

from kaggle_kit.decision import Decision, HeadRule
from kaggle_kit.decision_fitting import fit_decision, format_decision
from kaggle_kit.ensemble import Blend, Prefix, blend_predictions, equal_blend, load_blend, save_blend
from kaggle_kit.errors import DataError, PredictionError, SettingError
from kaggle_kit.folds import Folds, Scheme, labels_hash, make_folds
from kaggle_kit.folds.check import FoldFile, check_folds, check_made, label_deviation
from kaggle_kit.labels import Labels, class_counts, class_shares, read_labels, unseen_combinations
from kaggle_kit.metrics import PROBABILITY_METRICS
from kaggle_kit.multilabel import MULTILABEL_METRICS, mark_rows
from kaggle_kit.predictions import Predictions, concatenate
from kaggle_kit.scores import bootstrap_heads, metric_value, score_answers, score_split
from kaggle_kit.shakeup import Part, estimate_shakeup
from kaggle_kit.shift_effect import prior_shift_effect
from kaggle_kit.submission import (
    expected_rows,
    read_submission,
    score_submission,
    validate_submission,
    write_submission,
)
from kaggle_kit.tables import read_columns, write_rows
from kaggle_kit.task import Metric, Task, task_from_plain, task_to_plain

NAMES = ("left", "mid", "right", "bright")
TAGS = {"classes": list(NAMES), "kind": "multilabel"}


def task_of(metric: Metric = "macro_f1", form: str = "row_per_image", **heads: dict) -> Task:
    values = task_to_plain(wide_task())
    values |= {"heads": {"tags": TAGS, **heads}, "metric": metric, "submission": {"form": form}}
    return task_from_plain(values)


def sets_of(root: np.ndarray, vowel: np.ndarray) -> np.ndarray:
    """Where the block is, and on bright paper `bright`; in the middle of dark paper nothing."""
    sets = np.zeros((len(root), 4), np.uint8)
    sets[np.arange(len(root)), root] = 1
    sets[:, 3] = vowel
    sets[(root == 1) & (vowel == 0)] = 0
    return sets


def many(toy: Toy, *, spread: bool = False, metric: Metric = "macro_f1", form: str = "row_per_image") -> Toy:
    """Make the toy's labels multi-label: in one column, or in one for each class."""
    table = read_columns(toy.data / "train.csv")
    sets = sets_of(table.pop("root").astype(int), table.pop("vowel").astype(int))
    cells = [[" ".join(np.array(NAMES)[row > 0].tolist())] for row in sets]
    own = zip(*[column.tolist() for column in table.values()], strict=True)
    rows = [[*row, *labels] for row, labels in zip(own, sets.tolist() if spread else cells, strict=True)]
    write_rows(toy.data / "train.csv", [*table, *(NAMES if spread else ["tags"])], rows)
    task = task_of(metric, form)
    columns = list(NAMES) if form == "column_per_class" else ["target"]
    for folder, ids in ((toy.data, range(2)), (toy.hidden, range(9))):
        blank = [[f"Test_{i}", *([0] * len(columns) if len(columns) > 1 else [""])] for i in ids]
        write_rows(folder / "sample_submission.csv", ["image_id", *columns], blank)
    return dataclasses.replace(toy, task=task)


def noisy(rows: int, num_classes: int = 4, seed: int = 0, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = np.linspace(0.1, 0.6, num_classes)
    truth = (rng.random((rows, num_classes)) < shares).astype(np.uint8)
    probs = (1 - noise) * truth + noise * rng.random(truth.shape)
    return truth, (probs * 0.8).astype(np.float32)


REFERENCES = {
    "macro_recall": lambda y, s: sk.recall_score(y, s, average="macro", zero_division=0),
    "accuracy": sk.accuracy_score,
    "macro_f1": lambda y, s: sk.f1_score(y, s, average="macro", zero_division=0),
    "weighted_f1": lambda y, s: sk.f1_score(y, s, average="weighted", zero_division=0),
    "micro_f1": lambda y, s: sk.f1_score(y, s, average="micro", zero_division=0),
}


class TestMetrics:
    @pytest.mark.parametrize("metric", get_args(Metric))
    def test_every_metric_but_kappa_is_scikit_learns(self, metric: Metric) -> None:
        if metric == "quadratic_kappa":
            with pytest.raises(SettingError, match="quadratic_kappa counts steps"):
                task_of(metric)
            return
        for seed in range(20):
            truth, probs = noisy(150, num_classes=5, seed=seed)
            if metric in MULTILABEL_METRICS:
                expected = REFERENCES[metric](truth, probs >= 0.5)
            elif metric == "log_loss":
                expected = np.mean(
                    [sk.log_loss(y, p.astype(np.float64), labels=[0, 1]) for y, p in zip(truth.T, probs.T, strict=True)]
                )
            else:
                reference = sk.roc_auc_score if metric == "roc_auc" else sk.average_precision_score
                expected = reference(truth, probs, average="macro")
            assert metric_value(metric, truth, probs, 5) == pytest.approx(expected, abs=1e-12)
            assert score_answers(task_of(metric), truth_of(truth), truth_of(probs)).total == metric_value(
                metric, truth[:, :4], probs[:, :4], 4
            )

    @pytest.mark.parametrize("metric", MULTILABEL_METRICS)
    @pytest.mark.parametrize("odd", ["never true", "never said", "nothing true", "nothing said", "nothing at all"])
    def test_odd_answers_count_as_in_scikit_learn(self, metric: Metric, odd: str) -> None:
        truth, probs = noisy(40)
        said = (probs >= 0.5).astype(np.uint8)
        if odd in ("nothing true", "nothing at all"):
            truth[:] = 0
        if odd in ("nothing said", "nothing at all"):
            said[:] = 0
        truth[:, 1] *= odd != "never true"
        said[:, 1] *= odd != "never said"
        assert metric_value(metric, truth, said, 4) == pytest.approx(REFERENCES[metric](truth, said), abs=1e-12)

    def test_marks_of_resampled_rows_add_up(self) -> None:
        truth, probs = noisy(30)
        times = np.random.default_rng(1).integers(0, 3, 30)
        rows = np.repeat(np.arange(30), times)
        for metric, measure in MULTILABEL_METRICS.items():
            again = metric_value(metric, truth[rows], probs[rows], 4)
            assert measure(times @ mark_rows(truth, probs >= 0.5)) == pytest.approx(again, abs=1e-12)


def truth_of(values: np.ndarray) -> dict:
    return {"tags": values[:, :4]}


class TestScores:
    @pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "log_loss", "roc_auc"])
    def test_intervals_hold_the_score_beside_a_head_of_one_class(self, metric: Metric) -> None:
        task = task_of(metric, root={"classes": 3, "weight": 2})
        truth, probs = noisy(300)
        root = np.random.default_rng(2).integers(0, 3, 300)
        answers = {"tags": probs, "root": (0.2 + 0.4 * np.eye(3)[root]).astype(np.float32)}
        score = score_answers(task, {"tags": truth, "root": root}, answers, draws=200)
        assert score.interval and score.interval[0] <= score.total <= score.interval[1]
        alone = task_from_plain({**task_to_plain(task), "heads": {"root": {"classes": 3}}})
        assert score.heads["root"] == score_answers(alone, {"root": root}, {"root": answers["root"]}).total

    def test_a_resample_is_scored_as_its_rows_are(self) -> None:
        task = task_of(root={"classes": 3})
        truth, probs = noisy(50)
        root = np.arange(50) % 3
        answers = {"tags": (probs >= 0.5).astype(np.uint8), "root": np.roll(root, 1)}
        drawn = bootstrap_heads(task, {"tags": truth, "root": root}, [answers, answers], draws=3, seed=5)
        rng = np.random.default_rng(5)
        for draw in drawn:
            rows = np.repeat(np.arange(50), np.bincount(rng.integers(50, size=50), minlength=50))
            expected = [
                metric_value("macro_f1", truth[rows], answers["tags"][rows], 4),
                metric_value("macro_f1", root[rows], answers["root"][rows], 3),
            ]
            assert np.allclose(draw, expected, atol=1e-12)

    @pytest.mark.parametrize(
        ("answer", "metric", "message"),
        [
            (np.zeros(3, int), "macro_f1", r"answers have shape \(3,\); expected \(3, 4\) of 0 and 1 or \(3, 4\) prob"),
            (np.zeros((3, 5)), "macro_f1", r"answers have shape \(3, 5\)"),
            (np.full((3, 4), 2), "macro_f1", r"head 'tags': answers are 2 to 2; expected 0 and 1"),
            (np.zeros((3, 4), int), "log_loss", "scores probabilities, and only classes are given"),
            (np.zeros((3, 4)), "roc_auc", "all 3 images say the same of every class"),
        ],
    )
    def test_answers_that_do_not_fit_are_refused(self, answer: np.ndarray, metric: Metric, message: str) -> None:
        with pytest.raises(DataError, match=message):
            score_answers(task_of(metric), {"tags": np.zeros((3, 4), np.uint8)}, {"tags": answer})

    def test_parts_without_a_curve_are_left_out(self) -> None:
        truth, probs = noisy(40)
        truth[:10] = 1
        unseen = np.arange(40) < 10
        split = score_split(task_of("roc_auc"), {"tags": truth}, {"tags": probs}, unseen)
        assert split.unseen is None and split.seen is not None


class TestLabels:
    @pytest.mark.parametrize("spread", [False, True])
    def test_both_ways_to_write_labels_read_the_same(self, wide: Toy, spread: bool) -> None:
        plain = read_labels(wide.task, wide.data)
        toy = many(wide, spread=spread)
        labels = read_labels(toy.task, toy.data)
        assert labels.classes["tags"].dtype == np.uint8
        assert (labels.classes["tags"] == sets_of(plain.classes["root"], plain.classes["vowel"])).all()
        assert labels.groups is not None and (labels.groups == plain.groups).all()
        assert not labels.classes["tags"].any(axis=1).all()  # an empty cell is an image without any class
        head = toy.task.heads["tags"]
        assert (class_counts(labels.classes["tags"], head) == labels.classes["tags"].sum(axis=0)).all()
        assert np.allclose(class_shares(labels.classes["tags"], head), labels.classes["tags"].mean(axis=0))

    def test_the_separator_and_values_are_the_files(self, wide: Toy) -> None:
        rows = [["a", "x y|z"], ["b", ""], ["c", "z"], ["d", " z | x y "]]
        write_rows(wide.data / "train.csv", ["image_id", "tags"], rows)
        tags = {"classes": ["first", "second"], "values": ["x y", "z"], "kind": "multilabel", "separator": "|"}
        task = task_from_plain({**task_to_plain(task_of()), "heads": {"tags": tags}, "groups": None})
        assert read_labels(task, wide.data).classes["tags"].tolist() == [[1, 1], [0, 0], [0, 1], [1, 1]]

    @pytest.mark.parametrize(
        ("spread", "old", "new", "message"),
        [
            (False, "left", "lift", r"'Train_\d+' is 'lift.*', and 'lift' is none of its 4 classes \(left, mid, right"),
            (False, "tags", "tag", r"train.csv has no column 'tags'; did you mean 'tag'\?"),
            (
                True,
                ",1,",
                ",2,",
                r"column '\w+' of 'Train_\d+' is '2'; expected 0 or 1 in the column of a class; 1 row",
            ),
            (True, "mid", "middle", r"train.csv has no column 'mid'; did you mean 'middle'\?"),
        ],
    )
    def test_labels_that_are_wrong_are_named(self, wide: Toy, spread: bool, old: str, new: str, message: str) -> None:
        toy = many(wide, spread=spread)
        path = toy.data / "train.csv"
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(DataError, match=message):
            read_labels(toy.task, toy.data)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.zeros((2, 4), np.int64), r"labels are int64 \(2, 4\)"),
            (np.full((2, 4), 2, np.uint8), r"uint8 \(2, 4\), up to 2; expected \(2, classes\) uint8 of 0 and 1"),
            (np.zeros((3, 4), np.uint8), r"labels are uint8 \(3, 4\)"),
        ],
    )
    def test_what_is_no_set_of_classes_is_refused(self, values: np.ndarray, message: str) -> None:
        with pytest.raises(DataError, match=message):
            Labels(ids=np.array(["a", "b"]), classes={"tags": values})

    def test_the_set_of_classes_is_the_combination(self) -> None:
        train = labels_of(np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.uint8))
        test = labels_of(np.array([[1, 1, 0, 0], [0, 1, 0, 0]], np.uint8))
        assert unseen_combinations(test, train).tolist() == [True, False]


def labels_of(sets: np.ndarray, groups: np.ndarray | None = None) -> Labels:
    return Labels(ids=np.arange(len(sets)).astype(np.str_), classes={"tags": sets}, groups=groups)


class TestFolds:
    def test_stratified_folds_are_nearer_to_their_shares_than_random_ones(self) -> None:
        labels = labels_of(noisy(400, num_classes=8)[0])
        sets = labels.classes["tags"]
        folds = make_folds(labels, num_folds=5, seed=0)
        rng = np.random.default_rng(0)
        random = [label_deviation(sets, rng.permutation(np.arange(400) % 5)) for _ in range(200)]
        assert label_deviation(sets, folds.fold) < min(random)
        assert np.bincount(folds.fold).tolist() == [80] * 5

    @pytest.mark.parametrize("scheme", get_args(Scheme))
    def test_every_scheme_divides_sets_of_classes_and_passes_its_check(self, scheme: Scheme) -> None:
        sets = noisy(240)[0]
        labels = labels_of(sets, np.array([f"w{i % 12}" for i in range(240)]))
        folds = make_folds(labels, scheme, num_folds=3, seed=1)
        assert not [found for found in check_made(labels, folds) if found.verdict in ("LEAK", "WRONG")]
        if scheme == "unseen":
            held = {tuple(row) for row in sets[folds.unseen].tolist()}
            assert held and 0.1 < folds.unseen.mean() < 0.5

    def test_a_class_of_one_image_is_refused_or_trains_every_fold(self) -> None:
        sets = noisy(60)[0]
        sets[:, 2] = 0
        sets[7, 2] = 1
        labels = labels_of(sets)
        with pytest.raises(DataError, match=r"1 class\(es\) have one image only \('tags 2'; images '7'\)"):
            make_folds(labels, num_folds=3)
        folds = make_folds(labels, num_folds=3, rare="train")
        assert np.flatnonzero(folds.fold < 0).tolist() == [7]

    def test_that_all_images_but_one_show_a_class_does_not_matter(self) -> None:
        sets = noisy(60)[0]
        sets[:, 2] = 1
        sets[7, 2] = 0
        assert make_folds(labels_of(sets), num_folds=3).num_folds == 3

    def test_a_class_that_its_fold_does_not_train_is_found(self) -> None:
        sets = np.zeros((12, 4), np.uint8)
        sets[:, 0] = 1
        sets[:4, 3] = 1
        labels, fold = labels_of(sets), np.repeat([0, 1, 2], 4)
        findings = check_folds(labels, FoldFile(ids=labels.ids, fold=fold))
        assert any("1 class(es) are not trained in the fold that validates them: 'tags 3'" in f.text for f in findings)

    def test_the_hash_sees_every_label(self) -> None:
        sets = noisy(30)[0]
        other = sets.copy()
        other[4, 1] ^= 1
        assert labels_hash(labels_of(sets)) != labels_hash(labels_of(other))


class TestPredictions:
    def test_probabilities_need_not_sum_to_1_and_survive_a_file(self, tmp_path: Path) -> None:
        _, probs = noisy(5)
        part = Predictions(ids=np.array(list("abcde")), probs={"tags": probs}, multilabel=("tags",))
        part.save(tmp_path / "p.npz")
        again = Predictions.load(tmp_path / "p.npz")
        assert again.multilabel == ("tags",) and (again.probs["tags"] == probs).all()
        assert again.align(np.array(["c", "a"])).multilabel == ("tags",)
        assert (again.decide()["tags"] == (probs >= 0.5)).all() and again.decide()["tags"].dtype == np.uint8
        two = concatenate([again.align(np.array(["a"])), again.align(np.array(["b"]))])
        assert two.multilabel == ("tags",)

    def test_files_of_other_heads_are_as_they_were(self, tmp_path: Path) -> None:
        Predictions(ids=np.array(["a"]), probs={"root": np.ones((1, 2), np.float32) / 2}).save(tmp_path / "p.npz")
        with np.load(tmp_path / "p.npz") as stored:
            assert stored.files == ["ids", "probs/root"]
        assert Predictions.load(tmp_path / "p.npz").multilabel == ()

    @pytest.mark.parametrize(
        ("value", "multilabel", "message"),
        [
            (
                1.2,
                ("tags",),
                r"multi-label head 'tags': probs of 'a' are NaN or outside \[0, 1\] .*pass sigmoid outputs",
            ),
            (np.nan, ("tags",), r"are NaN or outside"),
            (-0.1, ("tags",), r"from -0.1000 to"),
            (0.4, (), r"head 'tags': probs of 'a' sum to 1.6000"),
            (0.4, ("root",), r"multi-label head 'root' has no probs, only 'tags'"),
        ],
    )
    def test_what_is_no_probability_is_refused(self, value: float, multilabel: tuple, message: str) -> None:
        probs = {"tags": np.full((1, 4), value, np.float32)}
        with pytest.raises(PredictionError, match=message):
            Predictions(ids=np.array(["a"]), probs=probs, multilabel=multilabel)

    def test_parts_of_other_kinds_do_not_go_together(self) -> None:
        probs = {"tags": np.full((1, 2), 0.5, np.float32)}
        one = Predictions(ids=np.array(["a"]), probs=probs, multilabel=("tags",))
        other = Predictions(ids=np.array(["b"]), probs=probs)
        with pytest.raises(PredictionError, match=r"different multi-label heads: \['tags'\] and \[\]"):
            concatenate([one, other])
        same_ids = dataclasses.replace(other, ids=one.ids)
        with pytest.raises(PredictionError, match=r"different multi-label heads: \['tags'\] and \[\]"):
            blend_predictions(equal_blend(["x", "y"]), {"x": one, "y": same_ids})
        assert blend_predictions(equal_blend(["x", "y"]), {"x": one, "y": one}).multilabel == ("tags",)


def fitted(metric: Metric, *, rows: int = 2000, noise: float = 0.6, **heads: dict):
    truth, probs = noisy(rows, noise=noise)
    classes, answers = {"tags": truth}, {"tags": probs}
    task = task_of(metric, **heads)
    counts = {"tags": truth.sum(axis=0)}
    if heads:
        rng = np.random.default_rng(3)
        classes["root"] = rng.integers(0, 3, rows)
        answers["root"] = rng.dirichlet(np.ones(3), rows).astype(np.float32)
        counts["root"] = np.bincount(classes["root"])
    return fit_decision(task, classes, answers, np.arange(rows) % 5, counts=counts, draws=200), classes, answers


class TestDecision:
    @pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "weighted_f1", "accuracy"])
    def test_thresholds_are_kept_where_they_gain_on_rows_they_were_not_fitted_on(self, metric: Metric) -> None:
        found, truth, probs = fitted(metric)  # probabilities that are all too low
        (one,) = found.candidates
        assert one.kept and one.nested_gain > 0 and one.rule.rule == "thresholds"
        assert metric_value(metric, truth["tags"], found.decided["tags"], 4) == pytest.approx(found.nested.total)
        assert found.nested.total > found.argmax.total
        own = found.decision.decide(probs, multilabel=("tags",))
        assert (own["tags"] == (probs["tags"] >= np.array(one.rule.thresholds))).all()
        assert "use the fitted decision (a rule for tags)" in format_decision(found)[-1]
        assert "where a threshold of 0.5 alone gets" in format_decision(found)[-1]

    def test_thresholds_that_do_not_gain_leave_the_half(self) -> None:
        rng = np.random.default_rng(0)
        probs = rng.random((3000, 4)).astype(np.float32)
        truth = (rng.random(probs.shape) < (probs > 0.5)).astype(np.uint8)
        counts = {"tags": truth.sum(axis=0)}
        found = fit_decision(task_of(), {"tags": truth}, {"tags": probs}, np.arange(3000) % 3, counts=counts, draws=100)
        assert found.decision == Decision.plain(task_of()) and found.decision.is_plain
        assert format_decision(found)[-1].startswith("no rule helps beyond luck: let a threshold of 0.5 decide")

    def test_no_threshold_is_fitted_to_recall_which_is_highest_where_all_is_said(self) -> None:
        found, *_ = fitted("macro_recall", rows=200)
        assert not found.candidates and found.decision.is_plain
        assert found.note.startswith("macro_recall of a multi-label head is highest where every class is said")

    def test_heads_of_both_kinds_are_fitted_side_by_side(self) -> None:
        found, _, probs = fitted("macro_f1", root={"classes": 3})
        rules = [(one.head, one.rule.rule) for one in found.candidates]
        assert rules == [("tags", "thresholds"), ("root", "prior_power"), ("root", "class_bias")]
        decided = found.decision.decide(probs)
        assert decided["root"].shape == (2000,) and decided["tags"].shape == (2000, 4)
        alone, *_ = fitted("macro_f1")
        assert alone.decision.heads["tags"] == found.decision.heads["tags"]

    def test_a_head_without_a_rule_goes_by_half(self) -> None:
        probs = {"tags": np.array([[0.5, 0.49]], np.float32), "root": np.array([[0.4, 0.6]], np.float32)}
        decided = Decision().decide(probs, multilabel=("tags",))
        assert decided["tags"].tolist() == [[1, 0]] and decided["root"].tolist() == [1]

    def test_thresholds_survive_a_blend_file(self, tmp_path: Path) -> None:
        rule = HeadRule(rule="thresholds", thresholds=(0.123456789012345, 1.002))
        prefix = Prefix(decision=Decision(heads={"tags": rule}))
        save_blend(Blend(runs=("a",), prefixes=(prefix,)), tmp_path / "blend.json")
        assert load_blend(tmp_path / "blend.json").decision.heads["tags"] == rule
        assert not Decision(heads={"tags": rule}).is_plain
        assert "from 0.12 (class 0) to 1.00 (class 1)" in Decision(heads={"tags": rule}).describe()
        assert "0.5 or more" in Decision.plain(task_of()).describe()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"rule": "thresholds"}, r"`thresholds` has 0 value\(s\); rule 'thresholds' needs one value a class"),
            ({"rule": "argmax", "thresholds": (0.5,)}, r"`thresholds` has 1 value\(s\); rule 'argmax' needs no values"),
            ({"rule": "thresholds", "thresholds": (0.5, np.nan)}, r"`thresholds\[1\]` is nan"),
        ],
    )
    def test_rules_that_make_no_sense_are_refused(self, values: dict, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            HeadRule(**values)

    def test_probabilities_of_other_classes_are_refused(self) -> None:
        with pytest.raises(PredictionError, match=r"head 'tags': probs have shape \(1, 3\), .* 2 thresholds"):
            Decision(heads={"tags": HeadRule.halves(2)}).decide({"tags": np.zeros((1, 3))})


SETS = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], np.uint8)
IDS = np.array(["Test_1", "Test_0"])


class TestSubmission:
    def test_a_column_holds_the_chosen_classes(self, wide: Toy, tmp_path: Path) -> None:
        toy = many(wide)
        rows, path = expected_rows(toy.task, toy.data), tmp_path / "s.csv"
        write_submission(toy.task, path, rows=rows, ids=IDS, decided={"tags": SETS})
        assert path.read_text() == "image_id,target\nTest_0,\nTest_1,left bright\n"
        validate_submission(toy.task, path, rows=rows)
        assert read_submission(toy.task, path)[1]["tags"].tolist() == SETS[::-1].tolist()
        assert score_submission(toy.task, path, path).all.total == 0.5  # of four classes, two are true somewhere

    def test_a_row_a_head_holds_them_too(self, wide: Toy, tmp_path: Path) -> None:
        task = dataclasses.replace(task_of(form="row_per_head", root={"classes": 3}))
        rows, path = np.array(["Test_0_tags", "Test_0_root", "Test_1_tags", "Test_1_root"]), tmp_path / "s.csv"
        decided = {"tags": SETS, "root": np.array([2, 1])}
        write_submission(task, path, rows=rows, ids=IDS, decided=decided)
        assert (
            path.read_text() == "row_id,target\nTest_0_tags,\nTest_0_root,1\nTest_1_tags,left bright\nTest_1_root,2\n"
        )
        validate_submission(task, path, rows=rows)

    def test_a_column_a_class_holds_zeros_and_ones(self, wide: Toy, tmp_path: Path) -> None:
        toy = many(wide, form="column_per_class")
        rows, path = expected_rows(toy.task, toy.data), tmp_path / "s.csv"
        write_submission(toy.task, path, rows=rows, ids=IDS, decided={"tags": SETS})
        assert path.read_text() == "image_id,left,mid,right,bright\nTest_0,0,0,0,0\nTest_1,1,0,0,1\n"
        validate_submission(toy.task, path, rows=rows)
        assert read_submission(toy.task, path)[1]["tags"].tolist() == SETS[::-1].tolist()

    @pytest.mark.parametrize("metric", PROBABILITY_METRICS)
    def test_a_column_a_class_holds_probabilities_where_the_metric_wants_them(
        self, wide: Toy, tmp_path: Path, metric: Metric
    ) -> None:
        toy = many(wide, form="column_per_class", metric=metric)
        rows, path = expected_rows(toy.task, toy.data), tmp_path / "s.csv"
        _, probs = noisy(2)
        write_submission(toy.task, path, rows=rows, ids=IDS, decided={"tags": SETS}, probs={"tags": probs})
        validate_submission(toy.task, path, rows=rows)
        write_rows(tmp_path / "solution.csv", ["image_id", *NAMES], [["Test_0", 0, 1, 0, 0], ["Test_1", 1, 0, 0, 1]])
        truth = np.array([[0, 1, 0, 0], [1, 0, 0, 1]], np.uint8)
        found = score_submission(toy.task, path, tmp_path / "solution.csv").all.total
        assert found == score_answers(toy.task, {"tags": truth}, {"tags": probs[::-1]}).total

    def test_a_column_a_class_serves_heads_of_one_class_too(self, wide: Toy, tmp_path: Path) -> None:
        values = task_to_plain(task_of("log_loss", "column_per_class"))
        task = task_from_plain({**values, "heads": {"root": {"classes": ["a", "b", "c"]}}})
        probs = np.array([[0.2, 0.3, 0.5], [1, 0, 0]], np.float32)
        path = tmp_path / "s.csv"
        decided = {"root": np.array([2, 0])}
        write_submission(task, path, rows=IDS, ids=IDS, decided=decided, probs={"root": probs})
        write_rows(tmp_path / "solution.csv", ["image_id", "a", "b", "c"], [["Test_1", 0, 0, 1], ["Test_0", 1, 0, 0]])
        assert score_submission(task, path, tmp_path / "solution.csv").all.total == pytest.approx(np.log(2) / 2)
        write_rows(tmp_path / "solution.csv", ["image_id", "a", "b", "c"], [["Test_1", 0, 1, 1], ["Test_0", 1, 0, 0]])
        with pytest.raises(DataError, match=r"'Test_1' has 2 of the 3 classes of head 'root'; expected a single 1"):
            score_submission(task, path, tmp_path / "solution.csv")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("0.1", "1.1", r"column 'left' of 'Test_0' is '1.1\d*'; expected a probability, 0 to 1; 1 row\(s\)"),
            ("0.1", "x", r"is 'x\d*'; expected a probability"),
            ("0.1", "nan", r"is 'nan\d*'; expected a probability"),
        ],
    )
    def test_what_is_no_probability_is_named(self, wide: Toy, tmp_path: Path, old: str, new: str, message: str) -> None:
        toy = many(wide, form="column_per_class", metric="log_loss")
        rows, path = expected_rows(toy.task, toy.data), tmp_path / "s.csv"
        probs = {"tags": np.full((2, 4), 0.1, np.float32)}
        write_submission(toy.task, path, rows=rows, ids=IDS, decided={"tags": SETS}, probs=probs)
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(DataError, match=message):
            validate_submission(toy.task, path, rows=rows)

    def test_a_sample_that_spreads_classes_is_told_apart(self, wide: Toy) -> None:
        spread = many(wide, form="column_per_class")
        with pytest.raises(
            DataError, match=r"has a column for each class of head 'tags' and none of 'target'; set `sub"
        ):
            expected_rows(task_of(), spread.data)
        other = task_of(form="column_per_class", vowel={"classes": ["v", "w"]})
        with pytest.raises(
            DataError, match=r"has columns .*; expected 'image_id', 'left', 'mid', 'right', 'bright', 'v'"
        ):
            expected_rows(other, spread.data)


def test_what_is_for_one_class_an_image_refuses_sets_of_classes() -> None:
    truth, probs = noisy(200)
    shares = {"tags": truth.mean(axis=0)}
    with pytest.raises(SettingError, match=r"correcting for class shares is for images of one class, and head 'tags'"):
        prior_shift_effect(task_of(), {"tags": truth}, {"tags": probs}, shares, Decision())
    part = Part(num_images=50, unseen_share=0)
    with pytest.raises(
        SettingError, match=r"a shake-up is for images of one class, and head 'tags' of task 'toy-wide'"
    ):
        estimate_shakeup(
            task_of(), {"tags": truth}, {"a": {"tags": probs}}, np.zeros(200, bool), public=part, private=part
        )


def test_folds_of_sets_survive_a_file(tmp_path: Path) -> None:
    folds = make_folds(labels_of(noisy(60)[0]), num_folds=3)
    folds.save(tmp_path / "folds.parquet")
    assert (Folds.load(tmp_path / "folds.parquet").fold == folds.fold).all()
