"""Pretrained weights: found in a file, a packed folder or the hub's cache, or else fetched; never pickled."""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kaggle_kit.errors import CheckpointError, SettingError, did_you_mean, some_of
from kaggle_kit.files import replacing
from kaggle_kit.progress import progress_bar

Tensors = dict[str, torch.Tensor]
INDEX = "index.json"
INDEX_FORMAT = 1
HUB_TIMEOUT_S = 8.0
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class NeededWeights:
    """The pretrained weights of one model, and where they are.

    Attributes:
        model: The timm model name they are needed for.
        tag: Which of the model's weights: those named after the dot, or timm's default.
        hub_id: Their repository on the Hugging Face hub; empty where timm knows none.
        file: Their name in it.
        cached: Where they are on this machine; None: they would have to be fetched.
        size_bytes: Of the cached file.
        license: As timm states it; empty where it does not.
    """

    model: str
    tag: str
    hub_id: str
    file: str
    cached: Path | None
    size_bytes: int | None
    license: str


def list_weights(names: Sequence[str]) -> list[NeededWeights]:
    """Say which weights models need, and which of them this machine has; the network is not asked.

    Raises:
        SettingError: For a model timm does not know or has no weights for, naming those there are.
    """
    return [_needed(name) for name in names]


def pack_weights(names: Sequence[str], folder: Path, *, weights_from: Path | None = None) -> list[Path]:
    """Put the weights of models into a folder, to be attached where there is no network: `model.weights=<folder>`.

    May be run again, also for other models: what is there already stays.

    Args:
        names: timm model names.
        folder: Gets `<model name>.safetensors` and an `index.json` of their SHA-256 sums and sources.
        weights_from: A safetensors file or a folder of them; None: the hub's cache, or else the hub.

    Returns:
        The files, in the order of the names.

    Raises:
        SettingError: For a model timm does not know, or has no weights for.
        CheckpointError: When weights cannot be had, or a file of somebody else's would be replaced.
    """
    for name in names:
        check_name(name)
        if weights_from is None:
            _needed(name)
    return [_pack_one(name, folder, weights_from) for name in names]


def find_weights(name: str, weights: str | None) -> Path:
    """Return the safetensors file with a model's pretrained weights, fetching it when it is nowhere on this machine.

    Args:
        name: A timm model name.
        weights: `model.weights`: a file, or a folder that `pack_weights` wrote; None: the hub's cache, or else the hub.

    Raises:
        SettingError: For a model that timm has no weights for.
        CheckpointError: When they are absent, changed since they were packed, or pickled.
    """
    if weights is None:
        needed = _needed(name)
        return needed.cached or _fetch(needed)
    path = Path(weights).expanduser()
    if path.is_dir():
        return _find_in_folder(name, path)
    if not path.exists():
        raise CheckpointError(
            f"there are no weights {weights!r}; give a safetensors file, or a folder written by "
            f"`kaggle-kit weights {name} --out FOLDER`"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"weights {weights!r} are no safetensors file, and a pickle may run code when it is read; convert it once: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
        )
    _check_sum(path)
    return path


def read_weights(path: Path) -> Tensors:
    """Read the tensors of a backbone: a timm safetensors file, or a checkpoint of this kit, whose heads are left out.

    Raises:
        CheckpointError: When the file is damaged or holds no tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({str(error)[:120]}); get it anew") from None
    own = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; get it anew")
    return own or tensors


def check_name(name: str) -> None:
    """Refuse a model name that timm does not know, or a tag of weights the model does not have.

    Raises:
        SettingError: With the closest name there is.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise SettingError(
            f"`model.name` is {name!r}, which timm {timm.__version__} does not know"
            f"{did_you_mean(name, timm.list_models())[:200]}"
        )
    tags = _tags(architecture)
    if tag and tag not in tags:
        raise SettingError(
            f"`model.name` is {name!r}, but timm {timm.__version__} has no weights {tag!r} of {architecture!r}"
            f"{did_you_mean(tag, tags) or '; leave the tag out'}"
        )


def _tags(architecture: str) -> list[str]:
    import timm

    known = timm.list_models(f"{architecture}.*", pretrained=True)
    return [name.partition(".")[2] for name in known if name.partition(".")[0] == architecture]


def _similar(name: str) -> list[str]:
    import timm

    known = timm.list_models(pretrained=True)
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]


def _needed(name: str) -> NeededWeights:
    import timm

    check_name(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise SettingError(
            f"timm {timm.__version__} has no pretrained weights of {name!r}; give model.weights a file of your own, or "
            f"choose another model, such as {some_of(_similar(name))}"
        )
    hub_id, file = config.hf_hub_id or "", _safe_name(config.hf_hub_filename)
    cached = _cached(hub_id, file) if hub_id else None
    return NeededWeights(
        model=name,
        tag=config.tag or "",
        hub_id=hub_id,
        file=file,
        cached=cached,
        size_bytes=cached.stat().st_size if cached else None,
        license=config.license or "",
    )


def _safe_name(name: str | None) -> str:
    """Return the safetensors file that stands beside a pickled one in timm's repositories."""
    stem, _, suffix = (name or "model.safetensors").rpartition(".")
    if suffix == "safetensors":
        return f"{stem}.{suffix}"
    return "open_clip_model.safetensors" if stem.startswith("open_clip") else "model.safetensors"


def _cached(hub_id: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = hub_id.partition("@")
    found = try_to_load_from_cache(repository, file, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _fetch(needed: NeededWeights) -> Path:
    """Download weights into the hub's cache.

    The hub's own client tries again for half a minute and more where there is no network; so we ask for the file once,
    and wait no longer than `HUB_TIMEOUT_S`, also for the name to be looked up.
    """
    from huggingface_hub import constants, hf_hub_download

    repair = (
        f"pack them by `kaggle-kit weights {needed.model} --out FOLDER` where there is a network, or by --from FILE "
        "from a file you have, and train with model.weights=FOLDER; or train with model.pretrained=false"
    )
    if not needed.hub_id:
        raise CheckpointError(f"timm has pretrained weights of {needed.model!r} only as a pickle; choose another model")
    repository, _, revision = needed.hub_id.partition("@")
    trouble = _hub_trouble(repository, needed.file, revision or None)
    if not trouble:
        try:
            return Path(hf_hub_download(repository, needed.file, revision=revision or None))
        except _hub_errors() as error:
            trouble = f"the download failed: {_one_line(error)}"
    raise CheckpointError(
        f"pretrained weights of {needed.model!r} are not in the cache ({constants.HF_HUB_CACHE}, {needed.hub_id}), and "
        f"{trouble}; {repair}"
    )


def _hub_trouble(repository: str, file: str, revision: str | None) -> str:
    """Return why a file cannot be downloaded; empty when it can."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    found: list[str] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=HUB_TIMEOUT_S / 2)
            found.append("")
        except (EntryNotFoundError, RepositoryNotFoundError):
            found.append(f"the hub has no {file} there, which alone is read: pickles may run code")
        except _hub_errors() as error:
            found.append(f"the hub cannot be reached: {_one_line(error)}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_S)
    return found[0] if found else f"the hub has not answered within {HUB_TIMEOUT_S:g} s"


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises; by its version it speaks through requests (OSError), httpx or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *[c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _find_in_folder(name: str, folder: Path) -> Path:
    for candidate in _file_names(name):
        if (folder / candidate).is_file():
            _check_sum(folder / candidate)
            return folder / candidate
    found = sorted(path.name for path in folder.iterdir())
    raise CheckpointError(
        f"the weights folder {str(folder)!r} has no {_file_names(name)[0]} but {some_of(found) or 'nothing'}; "
        f"run `kaggle-kit weights {name} --out FOLDER`, or give the file itself"
    )


def _file_names(name: str) -> list[str]:
    """Return what the weights of a model may be called: with and without the tag, where that is timm's default."""
    import timm

    architecture, _, tag = name.partition(".")
    default = timm.get_pretrained_cfg(architecture)
    default_tag = (default.tag if default else None) or ""
    names = [name]
    if default_tag and tag in ("", default_tag):
        names += [f"{architecture}.{default_tag}", architecture]
    return [f"{known}.safetensors" for known in dict.fromkeys(names)]


def _check_sum(path: Path) -> None:
    """Refuse a file that is not the one its folder's index was written for."""
    entry = next((e for e in _read_index(path.parent).values() if e.get("file") == path.name), None)
    if entry is not None and entry.get("sha256") != sha256_of(path):
        raise CheckpointError(
            f"{path} is not the file that was packed: its SHA-256 differs from {INDEX}; copy the folder again"
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != INDEX_FORMAT:
            raise CheckpointError(
                f"{path} has format {index['format']}; expected {INDEX_FORMAT}: pack the weights again"
            )
        return {str(name): dict(entry) for name, entry in index["models"].items()}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is no index of weights; delete it, or pack the weights again") from None


def _pack_one(name: str, folder: Path, weights_from: Path | None) -> Path:
    import timm

    source = find_weights(name, None if weights_from is None else str(weights_from))
    read_weights(source)
    target, digest = folder / f"{name}.safetensors", sha256_of(source)
    index = _read_index(folder)
    if not target.is_file() or sha256_of(target) != digest:
        if target.exists() and name not in index:
            raise CheckpointError(f"{target} is there already and holds other weights; choose another folder")
        _copy(source, target)
    config = timm.get_pretrained_cfg(name)
    index[name] = {
        "file": target.name,
        "sha256": digest,
        "size_bytes": target.stat().st_size,
        "source": _needed(name).hub_id if weights_from is None else source.name,
        "license": (config.license if config else None) or "",
        "timm": timm.__version__,
    }
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({"format": INDEX_FORMAT, "models": index}, indent=1), encoding="utf-8")
    return target


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary, source.open("rb") as before, temporary.open("wb") as after:
        total = source.stat().st_size
        with progress_bar(total, f"copying {target.name}", unit="byte") as bar:
            while block := before.read(BLOCK_BYTES):
                after.write(block)
                bar.update(len(block))
