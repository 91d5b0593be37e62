from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import ttach
from conftest import SIZE, wide_task

from kaggle_kit.errors import SettingError
from kaggle_kit.export.graph import ExportGraph, membership
from kaggle_kit.task import Task, task_from_plain, task_to_plain
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import Network, build_network

TAGS = {"classes": ["a", "b", "c", "d"], "kind": "multilabel"}
WHOLE = {"whole": {"classes": 7}}
DERIVATION = {"root": np.array([0, 0, 1, 1, 2, 2, -1]), "vowel": np.array([0, 1, 0, 1, 0, 1, -1])}


def task_of(**changes: Any) -> Task:
    return task_from_plain(task_to_plain(wide_task()) | changes)


def network_of(task: Task, **settings: Any) -> Network:
    """Make a network that says something else of every image, in evaluation mode."""
    torch.manual_seed(0)
    config = ModelConfig(**{"name": "test_resnet", "input_size": (32, 48)} | settings)
    derivation = DERIVATION if config.derive_from else None
    network = build_network(task, config, derivation=derivation).eval()
    for weights in network.heads.parameters():
        weights.data *= 20
    return network


def images(batch: int = 5, channels: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, *SIZE, channels), dtype=np.uint8))


@torch.inference_mode()
def answer(graph: ExportGraph, batch: torch.Tensor | None = None) -> dict[str, np.ndarray]:
    said = graph.eval()(images() if batch is None else batch)
    return {name: probs.numpy() for name, probs in zip(graph.names, said, strict=True)}


@torch.inference_mode()
def logits_of(network: Network, *, auxiliary: bool = False) -> Mapping[str, torch.Tensor]:
    return network(images(), auxiliary=auxiliary)


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for name, probs in expected.items():
        np.testing.assert_allclose(found[name], probs.numpy(), atol=atol, rtol=0)


def test_heads_answer_with_softmax_and_multilabel_ones_with_sigmoid_in_the_tasks_order() -> None:
    task = task_of(heads={"vowel": {"classes": 2}, "tags": TAGS, "rank": {"classes": 3, "kind": "ordinal"}})
    network = network_of(task)
    logits = logits_of(network)
    graph = ExportGraph(network)
    assert graph.names == ("vowel", "tags", "rank")
    expected = {"vowel": logits["vowel"].softmax(1), "tags": logits["tags"].sigmoid(), "rank": logits["rank"].exp()}
    assert_equal(answer(graph), expected)


def test_temperatures_divide_logits_and_columns_reorder_classes() -> None:
    network = network_of(task_of(heads={"root": {"classes": 3}, "tags": TAGS}))
    logits, order = logits_of(network), np.array([2, 0, 1])
    graph = ExportGraph(network, temperatures={"root": 1.7, "tags": 0.6}, columns={"root": order})
    assert_equal(
        answer(graph), {"root": (logits["root"] / 1.7).softmax(1)[:, order], "tags": (logits["tags"] / 0.6).sigmoid()}
    )


@pytest.mark.parametrize("specs", [["hflip"], ["vflip"]])
def test_flips_average_as_ttach_averages_probabilities(specs: list[str]) -> None:
    network = network_of(wide_task())

    class Probs(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return network.logits(pixels)["root"].softmax(1)

    transform = ttach.HorizontalFlip() if specs == ["hflip"] else ttach.VerticalFlip()
    with torch.inference_mode():
        wrapper = ttach.ClassificationTTAWrapper(Probs(), ttach.Compose([transform]))
        expected = wrapper(network.preprocess(images()))
    np.testing.assert_allclose(answer(ExportGraph(network, tta=specs))["root"], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "specs", [["scale=0.9,1.1"], ["shift=4"], ["hflip", "scale=0.9", "shift=2,5", "vflip"], ["hflip", "scale=0.75"]]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_views_average_as_a_loop_over_them_does(specs: list[str], batch: int) -> None:
    network = network_of(task_of(heads={"root": {"classes": 3}, "tags": TAGS}))
    graph = ExportGraph(network, tta=specs)
    with torch.inference_mode():
        pixels = network.preprocess(images(batch))
        said = [network.logits(view(pixels)) for view in graph.views]
    root = torch.stack([one["root"].softmax(1) for one in said]).mean(0)
    tags = torch.stack([one["tags"].sigmoid() for one in said]).mean(0)
    assert_equal(answer(graph, images(batch)), {"root": root, "tags": tags})
    plain = answer(ExportGraph(network), images(batch))
    assert np.abs(plain["root"] - root.numpy()).max() > 1e-4


def test_flipping_a_symmetric_image_changes_nothing() -> None:
    network = network_of(wide_task(), input_size=SIZE)
    half = images()[:, :, : SIZE[1] // 2]
    symmetric = torch.cat([half, half.flip(2)], dim=2)
    plain, flipped = (answer(ExportGraph(network, tta=tta), symmetric) for tta in ((), ("hflip",)))
    for name, probs in plain.items():
        np.testing.assert_allclose(flipped[name], probs, atol=1e-6)


def summed(whole: torch.Tensor, classes: np.ndarray, num_classes: int) -> torch.Tensor:
    """Sum (B, A) probabilities by hand, and divide by what the classes have together."""
    columns = [whole[:, classes == index].sum(1) for index in range(num_classes)]
    sums = torch.stack(columns, dim=1)
    return sums / sums.sum(1, keepdim=True)


def test_derived_heads_are_sums_of_the_auxiliary_heads_probabilities() -> None:
    network = network_of(task_of(auxiliary=WHOLE))
    whole = logits_of(network, auxiliary=True)["whole"].softmax(1).double()
    assert float(whole[:, 6].max()) > 0.01  # so that there is something to leave out
    graph = ExportGraph(network, derive_from="whole", derivation=DERIVATION)
    expected = {"root": summed(whole, DERIVATION["root"], 3), "vowel": summed(whole, DERIVATION["vowel"], 2)}
    found = answer(graph)
    assert_equal(found, expected)
    assert np.abs(found["root"].sum(1) - 1).max() < 1e-6
    assert np.abs(found["root"] - answer(ExportGraph(network))["root"]).max() > 0.1


def test_a_class_that_nothing_yields_gets_nothing_and_all_classes_may_be_used() -> None:
    network = network_of(task_of(auxiliary=WHOLE))
    derivation = {"root": np.array([0, 0, 0, 2, 2, 2, 2]), "vowel": np.array([1, 1, 0, 0, 1, 1, 0])}
    whole = logits_of(network, auxiliary=True)["whole"].softmax(1)
    found = answer(ExportGraph(network, derive_from="whole", derivation=derivation))
    assert (found["root"][:, 1] == 0).all()
    np.testing.assert_allclose(found["root"][:, 0], whole[:, :3].sum(1).numpy(), atol=1e-6)


def test_derived_heads_follow_columns_temperatures_and_views() -> None:
    network = network_of(task_of(auxiliary=WHOLE))
    order = np.array([1, 2, 0])
    graph = ExportGraph(
        network,
        derive_from="whole",
        derivation=DERIVATION,
        columns={"root": order},
        temperatures={"root": 2.0},
        tta=("hflip",),
    )
    with torch.inference_mode():
        pixels = network.preprocess(images())
        whole = [network.logits(view(pixels), auxiliary=True)["whole"].softmax(1) for view in graph.views]
    roots = [summed(one, DERIVATION["root"], 3).sqrt() for one in whole]  # to the power of 1 / temperature
    root = torch.stack([one / one.sum(1, keepdim=True) for one in roots]).mean(0)[:, order]
    vowel = torch.stack([summed(one, DERIVATION["vowel"], 2) for one in whole]).mean(0)
    assert_equal(answer(graph), {"root": root, "vowel": vowel})


def test_a_network_that_was_trained_to_derive_answers_as_it_does_either_way() -> None:
    network = network_of(task_of(auxiliary=WHOLE), derive_from="whole")
    trained = {name: logits.softmax(1) for name, logits in logits_of(network).items()}
    assert_equal(answer(ExportGraph(network)), trained)
    assert_equal(answer(ExportGraph(network, derive_from="whole", derivation=DERIVATION)), trained)


def test_membership_is_a_table_of_zeros_and_ones() -> None:
    found = membership(np.array([1, -1, 0, 1]), 3)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (
            {},
            {"derive_from": "whole"},
            "'whole', which is no auxiliary head of this 'test_resnet'; it was trained with",
        ),
        (
            {"auxiliary": WHOLE},
            {"derive_from": "hole"},
            r"'hole', which is no auxiliary head of this 'test_resnet'; did you mean 'whole'\?; leave it out, or train",
        ),
        (
            {"auxiliary": WHOLE, "heads": {"root": {"classes": 3}, "tags": TAGS}},
            {"derive_from": "whole"},
            "`derive_from` is 'whole', but the classes of head 'tags' do not exclude each other",
        ),
        ({}, {"temperatures": {"rot": 1.0}}, r"`temperatures` name 'rot', which is no head; did you mean 'root'\?"),
        ({}, {"temperatures": {"root": 0.0}}, "`temperatures.root` is 0.0; expected a number above 0"),
        ({}, {"temperatures": {"root": float("nan")}}, "`temperatures.root` is nan"),
        ({}, {"tta": ["hflop"]}, "'hflop', which is no change of an image"),
        ({}, {"tta": ["shift=40"]}, r"'shift=40', which moves images of \[32, 48\] out of sight"),
        ({"auxiliary": WHOLE}, {"derive_from": "whole", "derivation": {**DERIVATION, "vowel": np.full(7, -1)}}, "none"),
        ({"auxiliary": WHOLE}, {"derive_from": "whole", "derivation": {"root": np.zeros(4, int)}}, "of 4 .* 7 classes"),
    ],
)
def test_what_a_network_cannot_answer_is_refused(
    changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    network = network_of(task_of(**changes))
    with pytest.raises(SettingError, match=message):
        ExportGraph(network, **settings)


def test_the_graph_moves_with_its_network() -> None:
    graph = ExportGraph(network_of(task_of(auxiliary=WHOLE)), derive_from="whole", derivation=DERIVATION)
    buffers: Sequence[torch.Tensor] = list(graph.answers.buffers())
    assert len(buffers) == 4  # a table and the auxiliary classes used, of each head
    assert {one.device.type for one in graph.to("meta").answers.buffers()} == {"meta"}
