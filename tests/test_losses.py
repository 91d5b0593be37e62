from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kaggle_kit.errors import SettingError
from kaggle_kit.labels import Labels
from kaggle_kit.task import Task, task_from_plain
from kaggle_kit.train.config import LossConfig
from kaggle_kit.train.losses import (
    TrainingLoss,
    class_counts,
    class_weights,
    known_rows,
    loss_weights,
    make_loss,
    soft_targets,
)

N = 40
PLAIN = LossConfig(label_smoothing=0.0)


def make_task(heads: dict[str, Any], auxiliary: dict[str, Any] | None = None) -> Task:
    return task_from_plain(
        {
            "name": "toy",
            "heads": heads,
            "auxiliary": auxiliary or {},
            "metric": "macro_recall",
            "images": {"format": "packed", "train": "train", "test": "test"},
            "submission": {"form": "row_per_head"},
        }
    )


ROOT = {"root": {"classes": 5}}
TASK = make_task(
    {"root": {"classes": 5, "weight": 2}, "tags": {"classes": 4, "kind": "multilabel"}},
    {"grapheme": {"classes": 6, "weight": 0.5}},
)
RNG = np.random.default_rng(0)
LABELS = Labels(
    ids=np.arange(N).astype(np.str_),
    classes={"root": RNG.integers(0, 5, N) * RNG.integers(0, 2, N), "tags": RNG.integers(0, 2, (N, 4), dtype=np.uint8)},
    auxiliary={"grapheme": RNG.integers(-1, 6, N)},
)
ALL = np.arange(N)


def soft_rows(num_rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), num_rows)).float()


def some_logits(task: Task, num_rows: int = N, seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (3 * torch.randn(num_rows, head.num_classes, generator=rng)).requires_grad_()
        for name, head in task.trained_heads.items()
    }


def some_targets(task: Task) -> dict[str, torch.Tensor]:
    """Soft targets in every head, and grapheme unknown here and there."""
    targets = {name: soft_rows(N, head.num_classes) for name, head in task.trained_heads.items()}
    targets["grapheme"][3:30:4] = 0
    return targets


def one_head_loss(config: LossConfig, head: dict[str, Any], labels: np.ndarray | None = None) -> TrainingLoss:
    task = make_task({"root": head})
    classes = LABELS.classes["root"] if labels is None else labels
    rows = np.arange(len(classes))
    return make_loss(task, config, Labels(ids=rows.astype(np.str_), classes={"root": classes}), rows)


def test_soft_targets_are_one_hot_zero_where_unknown_and_several_labels_as_they_are() -> None:
    labels = {
        "root": torch.tensor([4, 0]),
        "tags": torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 0]]),
        "grapheme": torch.tensor([-1, 2]),
    }
    targets = soft_targets(TASK, labels)
    assert list(targets) == list(TASK.trained_heads)
    assert targets["root"].tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    assert targets["tags"].tolist() == labels["tags"].tolist()
    assert targets["grapheme"].tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
    assert all(rows.dtype == torch.float32 for rows in targets.values())
    assert known_rows("multiclass", targets["grapheme"]).tolist() == [False, True]
    assert known_rows("multilabel", targets["tags"]).tolist() == [True, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_cross_entropy_is_torchs(smoothing: float, kind: str) -> None:
    logits, targets = torch.randn(N, 5) * 3, soft_rows(N, 5)
    loss = one_head_loss(LossConfig(label_smoothing=smoothing), {"classes": 5, "kind": kind})
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss({"root": logits}, {"root": targets}), expected)


def test_class_weights_of_whole_labels_are_torchs_over_the_batch_size() -> None:
    logits, classes = torch.randn(N, 5) * 3, torch.from_numpy(LABELS.classes["root"])
    config = LossConfig(label_smoothing=0.0, class_weights="inverse")
    weights = torch.from_numpy(class_weights(np.bincount(LABELS.classes["root"], minlength=5), config)).float()
    found = one_head_loss(config, {"classes": 5})({"root": logits}, {"root": F.one_hot(classes, 5).float()})
    torch.testing.assert_close(found, F.cross_entropy(logits, classes, weight=weights, reduction="sum") / N)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_several_labels_take_torchs_binary_cross_entropy_summed_over_classes(name: Any) -> None:
    logits, targets = torch.randn(N, 4) * 3, torch.rand(N, 4)
    labels = LABELS.classes["tags"]
    loss = one_head_loss(LossConfig(name=name, label_smoothing=0.2), {"classes": 4, "kind": "multilabel"}, labels)
    expected = F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="sum") / N
    torch.testing.assert_close(loss({"root": logits}, {"root": targets}), expected)


def test_bce_asks_each_class_of_a_head_with_one_label() -> None:
    logits, targets = torch.randn(N, 5) * 3, soft_rows(N, 5)
    loss = one_head_loss(LossConfig(name="bce", label_smoothing=0.1), {"classes": 5})
    expected = F.binary_cross_entropy_with_logits(logits, targets * 0.9 + 0.1 / 5, reduction="sum") / N
    torch.testing.assert_close(loss({"root": logits}, {"root": targets}), expected)


def test_class_weights_of_several_labels_are_torchs_pos_weight() -> None:
    logits, labels = torch.randn(N, 4) * 3, LABELS.classes["tags"]
    config = LossConfig(label_smoothing=0.0, class_weights="inverse")
    weights = torch.from_numpy(class_weights(labels.sum(0, dtype=np.int64), config)).float()
    targets = torch.from_numpy(labels).float()
    found = one_head_loss(config, {"classes": 4, "kind": "multilabel"}, labels)({"root": logits}, {"root": targets})
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum") / N
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("class_weights_name", ["none", "sqrt"])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_focal_is_a_slow_reference(kind: str, class_weights_name: Any) -> None:
    gamma, smoothing, classes = 1.5, 0.1, 4
    config = LossConfig(name="focal", focal_gamma=gamma, label_smoothing=smoothing, class_weights=class_weights_name)
    labels = LABELS.classes["tags"] if kind == "multilabel" else LABELS.classes["root"] % 4
    counts = labels.sum(0, dtype=np.int64) if kind == "multilabel" else np.bincount(labels, minlength=4)
    weights = class_weights(counts, config)
    logits, targets = torch.randn(N, classes) * 3, soft_rows(N, classes)
    total = 0.0
    for row in range(N):
        z, t = logits[row].double().tolist(), targets[row].double().tolist()
        row_loss = 0.0
        for c in range(classes):
            if kind == "multilabel":
                p, s = 1 / (1 + math.exp(-z[c])), t[c] * (1 - smoothing) + smoothing / 2
                term = -s * (1 - p) ** gamma * math.log(p) - (1 - s) * p**gamma * math.log(1 - p)
                row_loss += term * (1 + t[c] * (weights[c] - 1))
            else:
                p, s = math.exp(z[c]) / sum(map(math.exp, z)), t[c] * (1 - smoothing) + smoothing / classes
                row_loss -= s * (1 - p) ** gamma * math.log(p)
        total += row_loss if kind == "multilabel" else row_loss * float(np.dot(t, weights))
    loss = one_head_loss(config, {"classes": classes, "kind": kind}, labels)
    assert float(loss({"root": logits}, {"root": targets})) == pytest.approx(total / N, rel=1e-5)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_focal_without_gamma_is_the_plain_loss(kind: str) -> None:
    logits, targets = {"root": torch.randn(N, 4)}, {"root": soft_rows(N, 4)}
    labels = LABELS.classes["tags"] if kind == "multilabel" else LABELS.classes["root"] % 4
    head = {"classes": 4, "kind": kind}
    focal = one_head_loss(LossConfig(name="focal", focal_gamma=0.0), head, labels)(logits, targets)
    torch.testing.assert_close(focal, one_head_loss(LossConfig(), head, labels)(logits, targets))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_focal_has_finite_slopes_where_nothing_is_left_to_learn(kind: str, gamma: float) -> None:
    logits = torch.tensor([[100.0, -100.0], [30.0, 0.0], [0.0, 0.0], [-100.0, 100.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0]] * 4)
    labels = np.eye(2, dtype=np.uint8) if kind == "multilabel" else np.arange(2)
    config = LossConfig(name="focal", focal_gamma=gamma, label_smoothing=0.0)
    value = one_head_loss(config, {"classes": 2, "kind": kind}, labels)({"root": logits}, {"root": targets})
    value.backward()
    assert logits.grad is not None
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


COUNTS = np.array([1000, 100, 10, 4])


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("inverse", 10.0), ("sqrt", 10**0.5), ("effective", (1 - 0.999**100) / (1 - 0.999**10))],
)
def test_class_weights_follow_the_counts_with_mean_1_over_images(name: Any, ratio: float) -> None:
    weights = class_weights(COUNTS, LossConfig(class_weights=name))
    assert weights[2] / weights[1] == pytest.approx(ratio)
    assert (COUNTS * weights).sum() / COUNTS.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["inverse", "sqrt", "effective"])
def test_a_class_without_images_weighs_what_the_rarest_does(name: Any) -> None:
    config = LossConfig(class_weights=name)
    weights = class_weights(np.append(COUNTS, 0), config)
    assert weights[:4] == pytest.approx(class_weights(COUNTS, config))
    assert weights[4] == weights[3] == weights.max()
    assert class_weights(np.zeros(3, np.int64), config).tolist() == [1, 1, 1]


def test_counts_are_of_the_train_rows_and_of_what_is_known() -> None:
    rows = np.array([0, 2, 3, 11])
    counts = class_counts(TASK, LABELS, rows)
    for row_classes, found in [
        (LABELS.classes["root"], counts["root"]),
        (LABELS.auxiliary["grapheme"], counts["grapheme"]),
    ]:
        assert found.tolist() == [sum(int(row_classes[row] == c) for row in rows) for c in range(len(found))]
    assert counts["tags"].tolist() == LABELS.classes["tags"][rows].astype(int).sum(0).tolist()


def test_the_loss_is_the_weighted_sum_of_heads_and_auxiliary_ones_come_on_top() -> None:
    loss = make_loss(TASK, PLAIN, LABELS, ALL)
    assert loss.weights == pytest.approx({"root": 2 / 3, "tags": 1 / 3, "grapheme": 0.5})
    logits, targets = some_logits(TASK), some_targets(TASK)
    parts = loss.per_head(logits, targets)
    expected = sum(weight * parts[name] for name, weight in loss.weights.items())
    torch.testing.assert_close(loss(logits, targets), expected)
    assert loss(logits, targets).shape == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"root": 3.0}, {"root": 0.75, "tags": 0.25, "grapheme": 0.5}),
        ({"grapheme": 0.0}, {"root": 2 / 3, "tags": 1 / 3, "grapheme": 0.0}),
        ({"root": 0.0, "tags": 0.0, "grapheme": 1.0}, {"root": 0.0, "tags": 0.0, "grapheme": 1.0}),
    ],
)
def test_head_weights_override_the_tasks(given: dict[str, float], expected: dict[str, float]) -> None:
    assert loss_weights(TASK, LossConfig(head_weights=given)) == pytest.approx(expected)


def test_unknown_labels_do_not_count() -> None:
    loss, logits, targets = make_loss(TASK, LossConfig(), LABELS, ALL), some_logits(TASK), some_targets(TASK)
    known = known_rows("multiclass", targets["grapheme"])
    assert 0 < known.sum() < N
    kept = {name: rows[known] for name, rows in logits.items()}
    alone = loss.per_head(kept, {name: rows[known] for name, rows in targets.items()})["grapheme"]
    torch.testing.assert_close(loss.per_head(logits, targets)["grapheme"], alone)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
def test_a_batch_without_any_known_label_adds_nothing(name: Any) -> None:
    loss = make_loss(make_task(ROOT), LossConfig(name=name), LABELS, ALL)
    logits = {"root": torch.randn(3, 5, requires_grad=True)}
    value = loss(logits, {"root": torch.zeros(3, 5)})
    value.backward()
    assert value == 0 and (logits["root"].grad == 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_uneven_micro_batches_accumulate_to_the_whole_batch(name: Any, weights: Any) -> None:
    loss = make_loss(TASK, LossConfig(name=name, class_weights=weights), LABELS, ALL)
    targets, whole, parts = some_targets(TASK), some_logits(TASK), some_logits(TASK)
    value = loss(whole, targets)
    value.backward()
    added = torch.zeros(())
    for part in torch.arange(N).split([1, 22, 3, 14]):
        small = {head: rows[part] for head, rows in targets.items()}
        part_value = loss({head: rows[part] for head, rows in parts.items()}, small, batch=targets)
        part_value.backward()
        added += part_value.detach()
    torch.testing.assert_close(added, value.detach())
    for head in whole:
        torch.testing.assert_close(parts[head].grad, whole[head].grad)


def test_an_image_mixed_from_two_weighs_what_they_do() -> None:
    config = LossConfig(label_smoothing=0.0, class_weights="inverse")
    loss = one_head_loss(config, {"classes": 5})
    logits = torch.randn(1, 5)
    rows = torch.eye(5)[[0, 3]]
    weights = class_weights(np.bincount(LABELS.classes["root"], minlength=5), config)
    mixed = 0.3 * rows[:1] + 0.7 * rows[1:]
    expected = (0.3 * weights[0] + 0.7 * weights[3]) * F.cross_entropy(logits, mixed)
    assert float(loss({"root": logits}, {"root": mixed})) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
def test_low_precision_logits_lose_nothing_in_the_loss(name: Any) -> None:
    loss = make_loss(TASK, LossConfig(name=name, class_weights="sqrt"), LABELS, ALL)
    low = {head: rows.detach().bfloat16() for head, rows in some_logits(TASK).items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(low, some_targets(TASK))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss({head: rows.float() for head, rows in low.items()}, some_targets(TASK)))


BASE = LossConfig(name="focal", class_weights="effective")


@pytest.mark.parametrize(
    ("config", "base"),
    [
        (LossConfig(name="focal"), LossConfig()),
        (LossConfig(name="bce"), LossConfig()),
        (LossConfig(label_smoothing=0.1), LossConfig()),
        (LossConfig(class_weights="inverse"), LossConfig()),
        (LossConfig(class_weights="sqrt"), LossConfig(class_weights="inverse")),
        (BASE, LossConfig(name="focal")),
        (LossConfig(name="focal", class_weights="effective", effective_beta=0.9), BASE),
        (LossConfig(name="focal", class_weights="effective", focal_gamma=1.0), BASE),
        (LossConfig(head_weights={"grapheme": 2.0}), LossConfig()),
    ],
)
def test_every_setting_changes_the_loss(config: LossConfig, base: LossConfig) -> None:
    logits, targets = some_logits(TASK), some_targets(TASK)
    found = [float(make_loss(TASK, one, LABELS, ALL)(logits, targets).detach()) for one in (config, base)]
    assert abs(found[0] - found[1]) > 1e-3


ORDINAL = make_task({"grade": {"classes": 3, "kind": "ordinal"}})
GRADES = Labels(ids=np.array(["a", "b"]), classes={"grade": np.array([0, 2])})


@pytest.mark.parametrize(
    ("task", "labels", "config", "message"),
    [
        (TASK, LABELS, LossConfig(head_weights={"grafeme": 1.0}), "head_weights.grafeme.*did you mean 'grapheme'"),
        (TASK, LABELS, LossConfig(head_weights={"root": 0, "tags": 0, "grapheme": 0}), "0 for every head; leave one"),
        (ORDINAL, GRADES, LossConfig(name="bce"), "head 'grade' is ordinal.*use loss.name=cross_entropy"),
    ],
)
def test_what_cannot_be_learned_is_refused(task: Task, labels: Labels, config: LossConfig, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_loss(task, config, labels, np.arange(len(labels)))
