"""The doctor: whether this place, at home or on Kaggle, can do what the kit will be asked to do, in under 10 seconds.

    from kaggle_kit.platform.doctor import examine
    print(examine().text)

What may hang or crash (drivers, big files) is tried in processes of its own that are stopped in time, and whatever is
missing is a finding, never an exception.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_kit.platform.findings import Checkup, Finding

if TYPE_CHECKING:
    from kaggle_kit.platform.attached import Wheel
    from kaggle_kit.platform.probe import Probe, Tried
    from kaggle_kit.platform.profiles import ImageProfile
    from kaggle_kit.platform.surroundings import Surroundings
    from kaggle_kit.task import Task

DEADLINE_S = 8.0  # for what is tried; the rest takes a second
_NEEDED = {"numpy": "numpy", "yaml": "PyYAML"}  # by this process itself


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What is looked at.

    Attributes:
        here: Where this is.
        profiles: The images to compare with.
        asked: Whether one of them was asked for.
        task: The competition, where it is known.
        task_source: From where.
        bundle: The bundle's folder, where there is one.
        kernel: The kernel's folder, where one was given.
        wheels: The attached ones.
        beforehand: What was found while all this was gathered.
    """

    here: Surroundings
    profiles: dict[str, ImageProfile]
    asked: bool
    task: Task | None
    task_source: str
    bundle: Path | None
    engines: Path | None
    kernel: Path | None
    wheels: Sequence[Wheel]
    beforehand: tuple[Finding, ...]

    @property
    def image(self) -> ImageProfile | None:
        """The profile of the image that this session runs on."""
        if not self.here.on_kaggle:
            return None
        same = [one for one in self.profiles.values() if self.asked or one.python == self.here.python_minor]
        return same[0] if same else None


def examine(
    *,
    bundle: Path | None = None,
    task: Task | str | Path | None = None,
    kernel: Path | None = None,
    profile: str | Path | None = None,
    deadline_s: float = DEADLINE_S,
) -> Checkup:
    """Look at everything that a submission, or work at home, depends on.

    Args:
        bundle: A bundle's folder; None: on Kaggle the attached one.
        task: A task, a preset's name or a task.yaml; None: the bundle's.
        kernel: A kernel's folder to look at too.
        profile: The image to compare with, by its name or file; None: those that are known.
        deadline_s: When what is tried is stopped.

    Raises:
        SettingError: When `task` or `profile` is none.
    """
    started = time.monotonic()
    broken = tuple(_check_needed())
    if broken:
        place = f"Python {platform.python_version()}"
        return Checkup(place=place, findings=broken, seconds=time.monotonic() - started)
    from kaggle_kit.platform.probe import Probe, Tried

    end = started + deadline_s
    with ExitStack() as stack:  # no process outlives this, whatever happens
        probe = _start(stack, Probe("try_runtime"))
        case = _gather(bundle, task, kernel, profile)
        opening = None
        if case.bundle is not None:
            arguments = (str(case.bundle), str(case.engines or ""))
            opening = _start(stack, Probe("try_bundle", arguments))
        runtime = probe.finish(end)
        opened = opening.finish(end) if opening else Tried()
    findings = tuple(_findings(case, runtime, opened))
    return Checkup(place=case.here.words, findings=findings, seconds=time.monotonic() - started)


def _start(stack: ExitStack, probe: Probe) -> Probe:
    stack.callback(probe.stop)
    return probe


def _check_needed() -> Iterator[Finding]:
    """Yield which packages this process itself needs and cannot import."""
    for module, package in _NEEDED.items():
        try:
            importlib.import_module(module)
        except (ImportError, AttributeError, ValueError, OSError) as error:
            words = " ".join(str(error).split())[:200]
            yield Finding(
                level="red",
                what=module,
                found=f"does not import: {words}",
                repair=f"pip install --force-reinstall {package}, then restart Python and run the doctor again",
            )


def _gather(
    bundle: Path | None, task: Task | str | Path | None, kernel: Path | None, profile: str | Path | None
) -> _Case:
    """Return what there is to look at."""
    from kaggle_kit.platform.attached import find_wheels
    from kaggle_kit.platform.checkup_inputs import attached_bundle, attached_engines, bundle_task
    from kaggle_kit.platform.profiles import read_profile, read_profiles
    from kaggle_kit.platform.surroundings import look_around
    from kaggle_kit.platform.wheel import find_kernel
    from kaggle_kit.task import read_task

    profiles = read_profiles() if profile is None else {str(profile): read_profile(profile)}
    known = read_task(task) if isinstance(task, str | Path) else task
    here = look_around(name for one in profiles.values() for name in one.packages)
    beforehand: tuple[Finding, ...] = ()
    engines = None
    if here.on_kaggle:
        if bundle is None:
            bundle, beforehand = attached_bundle(here)
        engines, more = attached_engines()
        beforehand += more
    of_bundle = bundle_task(bundle) if bundle else None
    return _Case(
        here=here,
        profiles=profiles,
        asked=profile is not None,
        task=known or of_bundle,
        task_source="task" if known else "the bundle's task",
        bundle=bundle,
        engines=engines,
        kernel=find_kernel(kernel) if kernel else None,
        wheels=find_wheels(here.root, here.python_minor) if here.on_kaggle else (),
        beforehand=beforehand,
    )


def _findings(case: _Case, runtime: Tried, opened: Tried) -> Iterator[Finding]:
    """Yield everything that was found, in the order that it is read in."""
    yield from _packages(case, runtime)
    yield from _inputs(case, opened)
    yield from _machine(case)


def _packages(case: _Case, runtime: Tried) -> Iterator[Finding]:
    from kaggle_kit.platform import checkup_packages as packages
    from kaggle_kit.platform import checkup_runtime as running

    here, wheels = case.here, case.wheels
    yield from packages.check_python(here)
    yield from packages.check_kit(here, wheels)
    yield from packages.check_profile(here, case.profiles, runtime, asked=case.asked)
    yield from packages.check_imports(here, runtime)
    yield from packages.check_protobuf(here, _imported_protobuf())
    yield from running.check_gpu(here, case.task)
    yield from running.check_onnxruntime(here, wheels, runtime, image=case.image)
    yield from running.check_provider(here, runtime)
    yield from packages.check_calls_home(here)
    yield from packages.check_extras(here)
    yield from packages.check_installer(here)


def _inputs(case: _Case, opened: Tried) -> Iterator[Finding]:
    from kaggle_kit.platform import checkup_inputs as inputs

    here = case.here
    if here.on_kaggle:
        yield from _look("inputs", lambda: inputs.check_competition(here, case.task))
        yield from inputs.check_wheels(here, case.wheels)
    yield from case.beforehand
    if case.bundle is not None:
        yield from inputs.check_bundle(here, case.bundle, opened, case.task)
    if case.kernel is not None:
        yield from inputs.check_kernel(case.kernel)


def _machine(case: _Case) -> Iterator[Finding]:
    from kaggle_kit.platform import checkup_machine as machine
    from kaggle_kit.runtime.mounts import TIME_LIMIT_VARIABLE

    yield from machine.check_disk(case.here, case.task)
    yield from machine.check_memory(case.here, case.task)
    yield from machine.check_cores(case.here)
    overridden = TIME_LIMIT_VARIABLE in os.environ
    yield from _look(
        "time limit",
        lambda: machine.check_time_limit(case.task, source=case.task_source, overridden=overridden),
    )


def _look(what: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a look at what others made finds, or the error that it ended in."""
    try:
        return list(check())
    except (ImportError, OSError, ValueError) as error:  # KitError is a ValueError
        words = " ".join(str(error).split()) or type(error).__name__
        return [Finding(level="red", what=what, found=words, repair="mend what the line names, and run it again")]


def _imported_protobuf() -> str | None:
    """Return the version of the protobuf that something has imported already, or None."""
    version = getattr(sys.modules.get("google.protobuf"), "__version__", None)
    return version if isinstance(version, str) else None
