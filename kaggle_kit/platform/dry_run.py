"""The client of `--dry-run`: it shows every call with its arguments and the files that would go, and makes none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from kaggle_kit.platform.client import Allowance, DatasetState, KernelState, OwnKernel, Push, Submission
from kaggle_kit.platform.rules import DATASET_METADATA, KERNEL_METADATA


class DryRun:
    """Answers as if all went well; see `client.Client` for what each call would do."""

    def __init__(
        self, say: Callable[[str], None], *, owner: str, datasets: Mapping[str, DatasetState | None] | None = None
    ) -> None:
        """Prepare.

        Args:
            say: Called with each call, a line each.
            owner: Whose account is pretended: the owner of what is published or pushed.
            datasets: {owner/slug: what is pretended of it, None: it does not exist}; any other one is ready.
        """
        self._say = say
        self._owner = owner
        self._datasets = dict(datasets or {})

    def owner(self) -> str:
        """Return the pretended user's name."""
        return self._owner

    def find_dataset(self, ref: str) -> DatasetState | None:
        """Show the call; answer what is pretended, or that it is ready."""
        self._show("find_dataset", ref)
        return self._datasets.get(ref, DatasetState(status="ready", notes={}))

    def create_dataset(self, folder: Path, *, public: bool) -> None:
        """Show the call and the files."""
        self._upload("create_dataset", folder, "public" if public else "private", sub_folders="zip")

    def version_dataset(self, folder: Path, *, message: str) -> None:
        """Show the call and the files."""
        self._upload("version_dataset", folder, message=message, sub_folders="zip")

    def own_kernels(self) -> list[OwnKernel]:
        """Show the call; answer that nothing runs."""
        self._show("own_kernels")
        return []

    def find_kernel(self, ref: str, *, version: int | None = None) -> KernelState | None:
        """Show the call; answer that it is complete, or of a name that a dataset has or is to have: that it is none."""
        self._show("find_kernel", ref, *([] if version is None else [f"version {version}"]))
        return None if ref in self._datasets else KernelState(phase="complete")

    def push_kernel(self, folder: Path, *, accelerator: str | None) -> Push:
        """Show the call and the files."""
        values = json.loads((folder / KERNEL_METADATA).read_text(encoding="utf-8"))
        self._show("push_kernel", values["id"], accelerator=accelerator or values.get("machine_shape") or "cpu")
        for name in (values["code_file"], KERNEL_METADATA):
            self._say(f"    {name}  {(folder / name).stat().st_size:,} bytes")
        self._datasets.pop(values["id"], None)  # it is a kernel from now on, and complete
        return Push(version=None)

    def kernel_log(self, ref: str) -> str:
        """Show the call."""
        self._show("kernel_log", ref)
        return ""

    def download_output(self, ref: str, folder: Path) -> list[Path]:
        """Show the call."""
        self._show("download_output", ref, str(folder))
        return []

    def allowance(self, competition: str) -> Allowance:
        """Show the call; answer that one submission is left."""
        self._show("allowance", competition)
        return Allowance(today=0, left=1)

    def submit(self, competition: str, *, kernel: str, version: int, file: str, message: str) -> int:
        """Show the call."""
        self._show("submit", competition, kernel, version=str(version or "the pushed one"), file=file, message=message)
        return 1

    def submissions(self, competition: str) -> list[Submission]:
        """Show the call; answer that there are none."""
        self._show("submissions", competition)
        return []

    def find_submission(self, number: int) -> Submission | None:
        """Show the call; answer that it is scored, without scores."""
        self._show("find_submission", str(number))
        return Submission(number=number, phase="complete")

    def _show(self, call: str, *values: str, **named: str) -> None:
        words = [*map(repr, values), *(f"{key}={value!r}" for key, value in named.items())]
        self._say(f"would call {call}({', '.join(words)})")

    def _upload(self, call: str, folder: Path, *values: str, **named: str) -> None:
        values_there = json.loads((folder / DATASET_METADATA).read_text(encoding="utf-8"))
        self._show(call, values_there["id"], *values, **named)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._say(f"    {path.relative_to(folder).as_posix()}  {path.stat().st_size:,} bytes")
        self._datasets[values_there["id"]] = DatasetState(status="ready", notes={})
