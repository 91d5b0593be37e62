"""Who is told how a training goes: history.csv always; TensorBoard and wandb where asked for."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from kaggle_kit.errors import SettingError
from kaggle_kit.progress import say
from kaggle_kit.scores import Score
from kaggle_kit.tables import write_rows
from kaggle_kit.task import Task
from kaggle_kit.train.config import LogConfig

Row = dict[str, int | float | str]
Values = npt.NDArray[np.float32]

HEAD_PREFIX = "score_"  # of a head's column: a head may be called `loss`
TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb-run.txt"
_FLUSH_S = 15
_BINS = 64


def history_row(
    *,
    epoch: int,
    loss: float,
    rate: float,
    score: Score | None,
    averages: Mapping[str, float],
    seconds: float,
    images_per_second: float,
    waiting: float,
) -> Row:
    """Return an epoch's row of history.csv, columns in order.

    Args:
        epoch: Counted from 1.
        loss: Mean over the epoch's steps.
        rate: The learning rate at its end.
        score: Of the validation rows; None where nothing validates.
        averages: {`ema`, `swa`, ...: total score} of averaged weights that were scored beside.
        seconds: Since the training began, as a resumed one counts them.
        images_per_second: In this epoch, validation apart.
        waiting: Share of the epoch's time in which the loop waited for images, 0 to 1.
    """
    row: Row = {"epoch": epoch, "loss": round(loss, 5), "rate": float(f"{rate:.6g}")}
    if score is not None:
        row["score"] = round(score.total, 6)
        row |= {f"{HEAD_PREFIX}{head}": round(value, 6) for head, value in score.heads.items()}
    row |= {name: round(value, 6) for name, value in averages.items()}
    return row | {
        "seconds": round(seconds, 1),
        "images_per_second": round(images_per_second, 1),
        "waiting": round(waiting, 4),
    }


class History:
    """The rows of a fold's history.csv, which is written anew as a whole after every epoch.

    Attributes:
        rows: A row an epoch: plain values, to be saved with the state that a training resumes from.
    """

    def __init__(self, path: Path | None, rows: Iterable[Row] = ()) -> None:
        """Begin a history, or go on with one.

        Args:
            path: Where it is written; None: nowhere, as on all ranks but one.
            rows: Those of a training that is resumed.
        """
        self._path = path
        self.rows: list[Row] = list(rows)

    def add(self, row: Row) -> None:
        """Add an epoch's row; one with columns of its own leaves them empty in earlier rows."""
        self.rows.append(row)
        if self._path is not None:
            columns = list(dict.fromkeys(name for one in self.rows for name in one))
            write_rows(self._path, columns, [[one.get(name, "") for name in columns] for one in self.rows])


def read_history(path: Path) -> dict[str, list[float]]:
    """Read the columns of a history.csv of any version of the kit.

    Returns:
        {column: a number a row, NaN where there is none}; empty where there is no file.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row.get(name)) for row in rows] for name in (rows[0] if rows else ()) if name is not None}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


class Sink(Protocol):
    """One listener; whatever it raises costs a training this listener, never the training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers."""
        ...

    def histogram(self, step: int, values: Mapping[str, Values]) -> None:
        """Tell how the values of each (n,) array are distributed."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Loggers:
    """All listeners of a training. One that fails is told of once on standard error, and left out from then on."""

    def __init__(self, sinks: Mapping[str, Sink], *, gradients: bool = False) -> None:
        """Take listeners by name; none for a training nobody listens to.

        Args:
            sinks: {name: listener}.
            gradients: Whether `histograms` tells anything.
        """
        self._sinks = dict(sinks)
        self._gradients = gradients

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Tell numbers, such as those of a row of the history; text is left out."""
        numbers = {name: float(value) for name, value in values.items() if not isinstance(value, str)}
        self._tell(lambda sink: sink.log(step, numbers))

    def histograms(self, step: int, network: nn.Module) -> None:
        """Tell the distributions of weights, and of gradients where there are any; only if `log.gradients` is set.

        Call it between the backward pass and `zero_grad`.
        """
        if self._gradients and self._sinks:
            values = dict(_weights_and_gradients(network))
            self._tell(lambda sink: sink.histogram(step, values))

    def close(self) -> None:
        """Write what is left; nothing may be told after that."""
        self._tell(lambda sink: sink.close())
        self._sinks.clear()

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                tell(sink)
            except Exception as error:  # noqa: BLE001  a full disk or a dead service must not end a training of hours
                del self._sinks[name]
                say(f"{name} failed ({_short(error)}); training goes on without it, and history.csv has the numbers")


def check_loggers(config: LogConfig) -> None:
    """Refuse loggers whose package is not installed, before anything is trained.

    Raises:
        SettingError: Naming the extra that installs it.
    """
    for name in config.to:
        if importlib.util.find_spec(name) is None:
            raise SettingError(
                f"`log.to` asks for {name}, which is not installed; run: pip install 'kaggle_kit[log]', or leave it out"
            )


def open_loggers(
    config: LogConfig, *, task: Task, run_name: str, folder: Path, settings: dict[str, Any], step: int = 0
) -> Loggers:
    """Open the loggers that are asked for; the process that writes files alone should call this.

    wandb is offline unless WANDB_MODE says otherwise: `wandb sync FOLDER/wandb/offline-run-*` sends it later. It writes
    every 15 seconds, so that kill -9 may cost it the last ones. A resumed training is the same run in both.

    Args:
        config: Which.
        task: Its name is wandb's project unless `log.project` names one.
        run_name: Such as `seresnext/fold0`; wandb groups runs by what is before the slash.
        folder: The fold's; gets `tensorboard/` and `wandb/`.
        settings: Plain values, shown with the run.
        step: The steps that a resumed training has behind it: what was told of later ones will be told again, and
            the first telling is hidden.

    Raises:
        SettingError: When a package is not installed.
    """
    check_loggers(config)
    sinks: dict[str, Sink] = {}
    for name in dict.fromkeys(config.to):
        try:
            if name == "tensorboard":
                sinks[name] = _TensorBoard(folder, settings, step=step)
            else:
                project = config.project or task.name
                sinks[name] = _Wandb(folder, settings, project=project, run_name=run_name)
        except Exception as error:  # noqa: BLE001  fold 4 must not die of a service that fold 3 could still start
            say(f"{name} does not start ({_short(error)}); training goes on without it")
    return Loggers(sinks, gradients=config.gradients)


class _TensorBoard:
    def __init__(self, folder: Path, settings: dict[str, Any], *, step: int) -> None:
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(
            str(folder / TENSORBOARD_FOLDER), purge_step=step + 1 if step else None, flush_secs=_FLUSH_S
        )
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()), step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, values: Mapping[str, Values]) -> None:
        for name, array in values.items():
            self._writer.add_histogram(name, array, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, settings: dict[str, Any], *, project: str, run_name: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE") or "offline"  # wandb refuses what is no mode
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=project,
            name=run_name,
            group=run_name.rpartition("/")[0] or None,
            id=_wandb_id(folder),
            resume=None if mode == "offline" else "allow",  # some versions warn of it offline
            dir=folder,
            mode=mode,
            config=settings,
            reinit="create_new",
            # no git: the address of a remote may hold a password
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def histogram(self, step: int, values: Mapping[str, Values]) -> None:
        binned = {name: np.histogram(array, bins=_BINS) for name, array in values.items()}
        self._run.log({name: self._wandb.Histogram(np_histogram=one) for name, one in binned.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    """Return the id by which wandb knows this fold, drawn when it is first asked for."""
    path = folder / WANDB_ID_FILE
    if path.is_file() and (known := path.read_text(encoding="ascii").strip()):
        return known
    drawn = secrets.token_hex(4)
    path.write_text(f"{drawn}\n", encoding="ascii")
    return drawn


def _weights_and_gradients(network: nn.Module) -> Iterator[tuple[str, Values]]:
    """Yield (n,) float32 arrays of finite values by name; none of what has no finite value."""
    for name, parameter in network.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is not None:
                values = tensor.detach().float().cpu().numpy().ravel()
                values = values[np.isfinite(values)]
                if len(values):
                    yield f"{kind}/{name}", values


def _short(error: Exception) -> str:
    """Return an error in one line, without the key that wandb may have been given."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:200]
