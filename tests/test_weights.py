from __future__ import annotations

import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from conftest import wide_task
from safetensors.torch import load_file, save_file

from kaggle_kit.errors import CheckpointError, SettingError
from kaggle_kit.train import weights
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import Network, build_network
from kaggle_kit.train.weights import find_weights, list_weights, pack_weights, sha256_of


def tensors_of(name: str = "test_resnet", *, num_classes: int = 1000, channels: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    size = {"img_size": (64, 64)} if "vit" in name else {}
    return timm.create_model(name, num_classes=num_classes, in_chans=channels, **size).state_dict()


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def start(path: Path | None, name: str = "test_resnet", size: tuple[int, int] = (64, 64)) -> Network:
    torch.manual_seed(0)
    config = ModelConfig(name=name, input_size=size, pretrained=True, weights=None if path is None else str(path))
    return build_network(wide_task(), config)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that cannot be reached."""

    def unreachable(*_arguments: object, **_options: object) -> None:
        raise ConnectionError("no such host")

    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    return cache


def fill_cache(cache: Path, tensors: dict[str, torch.Tensor]) -> Path:
    repository = cache / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return write(repository / "snapshots" / "abc" / "model.safetensors", tensors)


@pytest.mark.parametrize("num_classes", [0, 1000, 5])
def test_a_file_starts_the_backbone_with_or_without_its_classifier(num_classes: int, tmp_path: Path) -> None:
    tensors = tensors_of(num_classes=num_classes)
    network = start(write(tmp_path / "file.safetensors", tensors))
    state = network.backbone.state_dict()
    same = [name for name in state if name in tensors and torch.equal(state[name], tensors[name])]
    assert set(state) - set(same) == {"conv1.0.weight"}


def test_first_layers_of_gray_networks_are_summed_over_the_channels(tmp_path: Path) -> None:
    tensors = tensors_of()
    network = start(write(tmp_path / "file.safetensors", tensors))
    expected = tensors["conv1.0.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(network.backbone.state_dict()["conv1.0.weight"], expected)


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    tensors = tensors_of("test_vit")
    network = start(write(tmp_path / "file.safetensors", tensors), "test_vit", (96, 64))
    state = network.backbone.state_dict()
    assert state["pos_embed"].shape != tensors["pos_embed"].shape
    assert torch.equal(state["blocks.0.attn.qkv.weight"], tensors["blocks.0.attn.qkv.weight"])


def test_checkpoints_of_this_kit_start_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = build_network(wide_task(), ModelConfig(name="test_resnet", input_size=(64, 64)))
    after = start(write(tmp_path / "fold0.safetensors", before.state_dict()))
    expected = before.backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in after.backbone.state_dict().items())


def lacking(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name != "layer1.0.conv1.weight"}


def reshaped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "layer1.0.conv1.weight": torch.zeros(3, 3, 3, 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lacking,
            r"file.safetensors does not fit 'test_resnet': 1 of its tensors .*layer1.0.conv1.weight: none, expected \(",
        ),
        (reshaped, r"1 of its tensors .*first: layer1.0.conv1.weight: \(3, 3, 3, 3\), expected \("),
        (lambda _: tensors_of("test_efficientnet"), r"does not fit 'test_resnet': \d+ of its tensors lack"),
        (lambda _: {}, r"holds no tensors"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", change(tensors_of()))
    with pytest.raises(CheckpointError, match=message):
        start(path)


def test_networks_made_from_weights_keep_no_trace_of_how(tmp_path: Path) -> None:
    network = start(write(tmp_path / "file.safetensors", tensors_of()))
    assert "state_dict" not in network.backbone.pretrained_cfg
    assert not [module for module in network.modules() if module._load_state_dict_post_hooks]


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({}, path)
    with pytest.raises(CheckpointError, match=r"resnet.pth' are no safetensors file.*safetensors.torch.save_file\("):
        start(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", tensors_of())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"no readable safetensors file"):
        start(path)


def test_absent_weights_are_an_error_that_says_where_they_were_looked_for(hub: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=rf"not in the cache \({hub}, timm/test_resnet.r160_in1k\), and the hub cannot be reached: no such host; "
        r"pack them by `kaggle-kit weights test_resnet",
    ):
        start(None)


def test_a_hub_that_never_answers_is_not_waited_for(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: over.wait(60))
    monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 0.05)
    with pytest.raises(CheckpointError, match=r"the hub has not answered within 0.05 s"):
        start(None)
    over.set()


def test_weights_the_hub_has_only_pickled_are_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    def absent(*_arguments: object, **_options: object) -> None:
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", absent)
    with pytest.raises(CheckpointError, match=r"the hub has no model.safetensors there"):
        start(None)


def test_a_hub_that_answers_is_downloaded_from(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "downloaded.safetensors", tensors_of())
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str, *, revision: str | None) -> str:
        asked.append((repository, file))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_weights("test_resnet", None) == path
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]


def test_the_cache_is_used_and_listed(hub: Path) -> None:
    assert list_weights(["test_resnet"])[0].cached is None
    path = fill_cache(hub, tensors_of())
    (needed,) = list_weights(["test_resnet"])
    assert (needed.cached, needed.size_bytes, needed.tag) == (path, path.stat().st_size, "r160_in1k")
    assert needed.hub_id == "timm/test_resnet.r160_in1k" and needed.license == "apache-2.0"
    assert torch.equal(start(None).backbone.state_dict()["bn1.weight"], tensors_of()["bn1.weight"])


def test_models_without_weights_are_named() -> None:
    with pytest.raises(SettingError, match=r"no pretrained weights of 'vit_giant_patch14_224'; .* such as 'vit_giant_"):
        list_weights(["vit_giant_patch14_224"])
    with pytest.raises(SettingError, match=r"no weights 'a9_in1k' of 'resnet18'; did you mean 'a\d_in1k'"):
        list_weights(["resnet18.a9_in1k"])


def test_packed_weights_start_the_same_network(hub: Path, tmp_path: Path) -> None:
    fill_cache(hub, tensors_of())
    folder = tmp_path / "packed"
    assert pack_weights(["test_resnet"], folder) == [folder / "test_resnet.safetensors"]
    entry = json.loads((folder / "index.json").read_text())["models"]["test_resnet"]
    assert entry["sha256"] == sha256_of(folder / "test_resnet.safetensors")
    assert (entry["source"], entry["timm"]) == ("timm/test_resnet.r160_in1k", timm.__version__)
    here, there = start(None).state_dict(), start(folder).state_dict()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_packing_again_changes_nothing_and_adds_others(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    fill_cache(hub, tensors_of())
    pack_weights(["test_resnet"], folder)
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in folder.glob("*.safetensors")}
    pack_weights(["test_resnet"], folder)
    vit = write(tmp_path / "mine.safetensors", tensors_of("test_vit"))
    pack_weights(["test_vit"], folder, weights_from=vit)
    after = {path.name: (path.read_bytes(), path.stat().st_ino) for path in folder.glob("*.safetensors")}
    assert after["test_resnet.safetensors"] == before["test_resnet.safetensors"]
    index = json.loads((folder / "index.json").read_text())["models"]
    assert list(index) == ["test_resnet", "test_vit"] and index["test_vit"]["source"] == "mine.safetensors"


def test_packed_weights_that_changed_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack_weights(["test_resnet"], folder, weights_from=write(tmp_path / "a.safetensors", tensors_of()))
    write(folder / "test_resnet.safetensors", {n: v + 1 for n, v in tensors_of().items()})
    for place in (folder, folder / "test_resnet.safetensors"):
        with pytest.raises(CheckpointError, match=r"test_resnet.safetensors is not the file that was packed"):
            start(place)


def test_packing_does_not_replace_the_files_of_others(tmp_path: Path) -> None:
    theirs = write(tmp_path / "packed" / "test_resnet.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"is there already and holds other weights"):
        pack_weights(["test_resnet"], tmp_path / "packed", weights_from=write(tmp_path / "a.safetensors", tensors_of()))
    assert list(load_file(theirs)) == ["x"]


@pytest.mark.parametrize(
    ("packed", "asked"),
    [
        ("test_resnet", "test_resnet.r160_in1k"),
        ("test_resnet.r160_in1k", "test_resnet"),
    ],
)
def test_the_default_tag_may_be_left_out(packed: str, asked: str, tmp_path: Path) -> None:
    write(tmp_path / f"{packed}.safetensors", tensors_of())
    assert find_weights(asked, str(tmp_path)).name == f"{packed}.safetensors"


def test_other_tags_are_not_taken_for_the_default(tmp_path: Path) -> None:
    write(tmp_path / "resnet18.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"has no resnet18.a2_in1k.safetensors but 'resnet18.safetensors'"):
        find_weights("resnet18.a2_in1k", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no index of weights"),
        ("[]", "is no index"),
        ('{"format": 9, "models": {}}', "has format 9; expected 1"),
    ],
)
def test_damaged_indexes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "test_resnet.safetensors", tensors_of())
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        find_weights("test_resnet", str(tmp_path))
