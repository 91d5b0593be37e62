"""The state an unfinished training goes on from: one file, whole or as it was before."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from kaggle_kit.errors import CheckpointError
from kaggle_kit.files import replacing

STATE = "state.pt"
FORMAT = 1


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write plain values and tensors, atomically; what is there stays until the new state is whole."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return what `save_state` wrote, tensors on the CPU; None where nothing was.

    Nothing but tensors and plain values is unpickled.

    Raises:
        CheckpointError: When the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is damaged ({str(error)[:100]}); delete it to train this fold again from its start"
        ) from None
    assert isinstance(state, dict)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was saved by another version of the kit; delete it to train this fold again from its start"
        )
    return state
