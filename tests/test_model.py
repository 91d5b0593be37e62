from __future__ import annotations

import copy
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, wide_task
from torch import nn

from kaggle_kit.errors import CheckpointError, DataError, SettingError
from kaggle_kit.export.graph import ExportGraph
from kaggle_kit.export.onnx import export_onnx
from kaggle_kit.labels import Labels
from kaggle_kit.runtime.backends import OnnxSession
from kaggle_kit.settings import build
from kaggle_kit.task import Head, Task
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.heads import FLOOR, DerivedHead, OrdinalHead, derivation_of
from kaggle_kit.train.model import Preprocess, build_network, check_model, freeze_backbone, unfreeze
from kaggle_kit.train.pooling import Gem, Pool, make_pool

TINY = ModelConfig(name="test_resnet", input_size=(32, 48))
GRAPHEME = Head(name="grapheme", classes=5)
SYLLABLES = {"root": np.array([0, 0, 1, 1, 1]), "vowel": np.array([0, 1, 0, 1, 1])}  # class 2 of root: of no grapheme


def task_with(**auxiliary: Head) -> Task:
    return replace(wide_task(), auxiliary=auxiliary)


def images(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 1), dtype=np.uint8))


def make(config: ModelConfig = TINY, task: Task | None = None, **options) -> nn.Module:
    torch.manual_seed(0)
    return build_network(task or wide_task(), config, **options).eval()


def derived_network(**options) -> nn.Module:
    return make(replace(TINY, derive_from="grapheme"), task_with(grapheme=GRAPHEME), **options)


def test_auxiliary_heads_are_given_when_asked_for() -> None:
    network = make(task=task_with(grapheme=GRAPHEME))
    assert network.head_names == ("root", "vowel") and network.auxiliary_names == ("grapheme",)
    assert network.head_kinds == dict.fromkeys(("root", "vowel", "grapheme"), "multiclass")
    alone, together = network(images()), network(images(), auxiliary=True)
    assert {head: tuple(v.shape) for head, v in together.items()} == {
        "root": (3, 3),
        "vowel": (3, 2),
        "grapheme": (3, 5),
    }
    assert list(alone) == ["root", "vowel"]
    assert all(torch.equal(values, together[head]) for head, values in alone.items())


def test_uint8_and_float_images_are_the_same() -> None:
    network = make()
    whole, float_ = network(images()), network(images().float())
    assert all(torch.equal(whole[head], float_[head]) for head in whole)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_byobnet", "test_vit2"])
def test_average_pooling_is_what_averaging_backbones_do(name: str) -> None:
    own = make(ModelConfig(name=name, input_size=(64, 64)))
    ours = make(ModelConfig(name=name, input_size=(64, 64), pool="avg"))
    ours.load_state_dict(own.state_dict())
    for head, expected in own(images()).items():
        torch.testing.assert_close(ours(images())[head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("pool", ["gem", "concat"])
def test_pooling_changes_the_features(name: str, pool: str) -> None:
    own = make(ModelConfig(name=name, input_size=(64, 64)))
    ours = make(ModelConfig(name=name, input_size=(64, 64), pool=pool))
    width = own.heads[0].in_features
    assert ours.heads[0].in_features == (2 * width if pool == "concat" else width)
    ours(images())["root"].sum().backward()
    if pool == "gem":
        assert ours.pool.gem.exponent.item() == 3 and ours.pool.gem.exponent.grad.abs().item() > 0
        average = own.backbone(own.preprocess(images()))
        assert not torch.allclose(ours._pooled(ours.preprocess(images())), average, rtol=1e-2)


def test_concat_is_average_and_maximum_side_by_side() -> None:
    network = make(replace(TINY, pool="concat"))
    pixels = network.preprocess(images())
    maps = network.backbone.forward_features(pixels)
    torch.testing.assert_close(network._pooled(pixels), torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))


def test_tokens_of_places_are_pooled_without_the_class_token() -> None:
    network = make(ModelConfig(name="test_vit", input_size=(64, 64), pool="avg"))
    pixels = network.preprocess(images())
    tokens = network.backbone.forward_features(pixels)
    torch.testing.assert_close(network._pooled(pixels), tokens[:, 1:].mean(dim=1))


def test_a_generalised_mean_goes_from_the_average_to_the_maximum() -> None:
    maps = torch.rand(2, 4, 5, 6)
    torch.testing.assert_close(Gem(1.0)(maps, (2, 3)), maps.mean((2, 3), keepdim=True))
    torch.testing.assert_close(Gem(200.0)(maps, (2, 3)), maps.amax((2, 3), keepdim=True), rtol=0.05, atol=0)
    half = torch.full((1, 1, 2, 2), -1.0, dtype=torch.float16)
    assert Gem()(half, (2, 3)).isfinite().all()


class WeighedPlaces(nn.Module):
    """A backbone whose features depend on where something is, as those of VGG do."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_features = nn.Conv2d(1, 4, 3, stride=2)
        self.forward_head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_backbones_that_weigh_places_are_not_pooled_otherwise() -> None:
    with pytest.raises(SettingError, match=r"`model.pool` is 'avg', but 'weighed' pools by weights of its own"):
        make_pool("avg", WeighedPlaces(), torch.rand(1, 1, 16, 16), name="weighed")
    with pytest.raises(SettingError, match=r"'linear' has no feature map that can be pooled otherwise"):
        make_pool("avg", nn.Linear(2, 2), torch.rand(1, 1, 16, 16), name="linear")


@pytest.mark.parametrize("places", [(2, 3), (1, 2)])
def test_pooling_follows_the_order_of_dimensions(places: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, 4, 5)
    assert torch.equal(Pool("avg", places=places, prefix=0)(maps)[0], maps.mean(places, keepdim=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="resnet18.foo"), r"no weights 'foo' of 'resnet18'"),
        (
            ModelConfig(name="test_vit", pool="gem", input_size=(64, 64)),
            r"`model.pool` is 'gem', but 'test_vit' gives tokens, .* set model.pool to",
        ),
        (
            ModelConfig(name="ghostnet_050", drop_path=0.1),
            r"`model.drop_path` is 0.1, but 'ghostnet_050' has no such paths",
        ),
        (
            ModelConfig(name="test_vit", input_size=(50, 50)),
            r"cannot make 'test_vit' for input \[50, 50\].*model.input_size",
        ),
        (
            ModelConfig(name="test_resnet", derive_from="graphem"),
            r"'graphem', which is no auxiliary head .* did you mean 'grapheme'\?",
        ),
    ],
)
def test_what_a_backbone_cannot_do_is_refused(config: ModelConfig, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make(config, task_with(grapheme=GRAPHEME))


def test_deriving_without_auxiliary_heads_names_the_repair() -> None:
    with pytest.raises(SettingError, match="the task has none: name one under `auxiliary`"):
        make(replace(TINY, derive_from="grapheme"))


def test_classes_that_do_not_exclude_each_other_are_not_derived() -> None:
    task = wide_task()
    task = replace(
        task, heads={"root": replace(task.heads["root"], kind="multilabel")}, auxiliary={"grapheme": GRAPHEME}
    )
    with pytest.raises(SettingError, match=r"classes of head 'root' do not exclude each other"):
        make(replace(TINY, derive_from="grapheme"), task)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="test_resnet.none"), "no weights 'none'"),
        (ModelConfig(name="test_vit", pool="gem"), "`model.pool` is 'gem'"),
        (ModelConfig(name="densenet121", drop_path=0.2), "`model.drop_path` is 0.2"),
    ],
)
def test_models_are_checked_early(config: ModelConfig, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_model(config)


def test_missing_weights_are_found_early(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there are no weights '.*gone.safetensors'"):
        check_model(ModelConfig(name="test_resnet", pretrained=True, weights=str(tmp_path / "gone.safetensors")))


def test_sizes_that_change_are_refused_early_where_the_backbone_cannot() -> None:
    sizes = {"schedule.small_size": (16, 24)}
    check_model(TINY, sizes=sizes)
    check_model(ModelConfig(name="test_vit"), sizes={"schedule.small_size": None})
    with pytest.raises(SettingError, match=r"`schedule.small_size` is \[16, 24\], but 'test_vit'"):
        check_model(ModelConfig(name="test_vit"), sizes=sizes)


def test_drop_path_drops_paths_in_training_alone() -> None:
    network = make(replace(TINY, drop_path=0.5))
    pixels = network.preprocess(images())
    assert torch.equal(network.backbone(pixels), network.backbone(pixels))
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # the last of a branch starts at 0
    assert not torch.equal(network.backbone(pixels), network.backbone(pixels))


def test_ordinal_heads_give_log_probabilities_of_every_class() -> None:
    head = OrdinalHead(6, 4)
    features = torch.randn(5, 6)
    log_probs = head(features).detach()
    steps = head.steps(features).sigmoid().detach()
    slow = [[torch.prod(row[:c]) * (1 - row[c] if c < 3 else 1) for c in range(4)] for row in steps]
    torch.testing.assert_close(log_probs.exp(), torch.tensor(slow))
    torch.testing.assert_close(log_probs.softmax(dim=1), log_probs.exp())


def test_ordinal_heads_of_a_task_are_built() -> None:
    task = wide_task()
    task = replace(task, heads={**task.heads, "root": replace(task.heads["root"], kind="ordinal")})
    network = make(task=task)
    assert network.head_kinds["root"] == "ordinal" and isinstance(network.heads[0], OrdinalHead)
    assert torch.allclose(network(images())["root"].exp().sum(dim=1), torch.ones(3))


def test_derived_heads_are_sums_of_the_auxiliary_heads_probabilities() -> None:
    network = derived_network(derivation=SYLLABLES)
    logits = network(images(), auxiliary=True)
    probs = logits["grapheme"].softmax(dim=1)
    for head, classes in SYLLABLES.items():
        for index in range(classes.max() + 1):
            torch.testing.assert_close(logits[head][:, index].exp(), probs[:, classes == index].sum(dim=1))
    assert (logits["root"][:, 2] == FLOOR).all()
    assert len(network.heads) == 1 and list(network(images())) == ["root", "vowel"]


def test_derived_heads_teach_the_auxiliary_head() -> None:
    network = derived_network(derivation=SYLLABLES)
    network(images())["root"][:, 0].sum().backward()
    assert network.heads[0].weight.grad.isfinite().all() and network.heads[0].weight.grad.abs().sum() > 0


def test_a_derivation_comes_back_with_the_weights() -> None:
    network = derived_network(derivation=SYLLABLES)
    again = derived_network()
    again.load_state_dict(network.state_dict())
    copied = copy.deepcopy(derived_network())
    copied.load_state_dict(network.state_dict())
    for head, expected in network(images()).items():
        assert torch.equal(again(images())[head], expected) and torch.equal(copied(images())[head], expected)


def test_auxiliary_classes_that_belong_nowhere_count_nowhere() -> None:
    head = DerivedHead(2, torch.tensor([0, 1, -1]))
    log_probs = torch.tensor([[0.2, 0.3, 0.5]]).log()
    torch.testing.assert_close(head(log_probs).exp(), torch.tensor([[0.2, 0.3]]))


def labels_of(root: list[int], vowel: list[int], grapheme: list[int]) -> Labels:
    ids = np.array([f"Train_{i}" for i in range(len(root))])
    classes = {"root": np.array(root), "vowel": np.array(vowel)}
    return Labels(ids=ids, classes=classes, auxiliary={"grapheme": np.array(grapheme)})


def test_a_derivation_is_read_from_the_labels() -> None:
    labels = labels_of([0, 1, 0, 2, 1], [1, 0, 1, 1, 1], [3, 0, 3, 1, -1])
    found = derivation_of(task_with(grapheme=GRAPHEME), labels, "grapheme")
    assert {head: classes.tolist() for head, classes in found.items()} == {
        "root": [1, 2, -1, 0, -1],
        "vowel": [0, 1, -1, 1, -1],
    }


def test_an_auxiliary_class_of_two_classes_is_named() -> None:
    labels = labels_of([0, 1, 0], [1, 0, 0], [3, 2, 3])
    with pytest.raises(DataError, match=r"class '3' belongs to classes '0' and '1' of head 'vowel'"):
        derivation_of(task_with(grapheme=GRAPHEME), labels, "grapheme")


def test_the_size_can_change_and_change_back() -> None:
    network = make()
    before = network(images())
    seen: list[torch.Size] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network.train().set_input_size((16, 24))
    assert network.input_size == (16, 24) and network.training and network.backbone.training
    network.eval()(images())
    assert seen[-1] == (3, 1, 16, 24)
    network.set_input_size((32, 48))
    assert all(torch.equal(values, before[head]) for head, values in network(images()).items())


def test_a_size_the_backbone_cannot_take_leaves_the_old_one() -> None:
    network = make(ModelConfig(name="test_vit", input_size=(64, 64)))
    with pytest.raises(SettingError, match=r"'test_vit' takes images of one size alone, \[64, 64\], not \[32, 32\]"):
        network.set_input_size((32, 32))
    assert network.input_size == (64, 64)


def test_preprocessing_is_not_in_the_state_dict() -> None:
    assert not [name for name in make(replace(TINY, pool="gem")).state_dict() if name.startswith("preprocess")]


def trained_names(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_frozen_convolutional_networks_train_heads_norms_and_exponent() -> None:
    network = make(replace(TINY, pool="gem"))
    total = sum(parameter.numel() for parameter in network.parameters())
    counts = freeze_backbone(network)
    norms = {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    heads = {f"heads.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert norms and trained_names(network) == norms | heads | {"pool.gem.exponent"}
    assert sum(counts) == total and counts.trained < counts.frozen
    assert unfreeze(network) == (total, 0)


def test_frozen_transformers_train_their_heads() -> None:
    network = make(ModelConfig(name="test_vit", input_size=(64, 64)))
    freeze_backbone(network)
    assert trained_names(network) == {f"heads.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}


def test_what_a_network_never_trained_stays_untrained() -> None:
    network = make()
    network.backbone.conv1[0].weight.requires_grad = False
    network._fixed_names = frozenset({"backbone.conv1.0.weight"})
    freeze_backbone(network)
    unfreeze(network)
    assert not network.backbone.conv1[0].weight.requires_grad and network.backbone.layer1[0].conv1.weight.requires_grad


def test_derived_and_ordinal_heads_are_exported(tmp_path: Path) -> None:
    task = task_with(grapheme=GRAPHEME)
    task = replace(task, heads={**task.heads, "vowel": replace(task.heads["vowel"], kind="ordinal")})
    network = make(replace(TINY, pool="gem", derive_from="grapheme"), task, derivation=SYLLABLES)
    check_export(network, tmp_path / "member.onnx")


def test_auxiliary_heads_stay_out_of_the_graph(tmp_path: Path) -> None:
    import onnx

    task = task_with(grapheme=Head(name="grapheme", classes=77))
    task = replace(task, heads={**task.heads, "root": replace(task.heads["root"], kind="ordinal")})
    check_export(make(replace(TINY, pool="concat"), task), tmp_path / "member.onnx")
    shapes = [tuple(tensor.dims) for tensor in onnx.load(tmp_path / "member.onnx").graph.initializer]
    assert shapes and not [shape for shape in shapes if 77 in shape]


def check_export(network: nn.Module, path: Path) -> None:
    export_onnx(ExportGraph(network), path, shape=(*SIZE, 1))
    found = OnnxSession(path).run(images(5).numpy())
    assert list(found) == ["root", "vowel"]
    for head, logits in network(images(5)).items():
        assert np.abs(found[head] - logits.softmax(dim=1).detach().numpy()).max() < 1e-5


def test_presets_hold_every_setting_and_a_model_there_is() -> None:
    import timm
    import yaml

    folder = resources.files("kaggle_kit.conf") / "model"
    presets = {item.name: yaml.safe_load(item.read_text(encoding="utf-8")) for item in folder.iterdir()}
    settings = set(ModelConfig.__dataclass_fields__)
    for values in presets.values():
        assert set(values) == settings
        config = build(ModelConfig, values)
        assert not config.pretrained and timm.is_model(config.name)
        assert timm.get_pretrained_cfg(config.name).has_weights


def test_images_are_resized_in_full_precision_under_autocast() -> None:
    preprocess = Preprocess((24, 32), (16, 20), mean=[0.5], std=[0.25])
    images = torch.randint(0, 256, (2, 24, 32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = preprocess(images)
    assert torch.equal(found, preprocess(images))
