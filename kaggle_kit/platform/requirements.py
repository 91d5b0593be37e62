"""What a wheelhouse has to bring to an image: what is asked for, and what that requires and the image lacks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kaggle_kit.errors import KitError, SettingError
from kaggle_kit.platform.index import Found
from kaggle_kit.platform.profiles import ImageProfile
from kaggle_kit.runtime.wheelhouse import normal_name

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
NEVER = ("torch", "torchvision", "numpy")  # an image has its own, and a second one breaks it
KIT = "kaggle_kit"


@dataclass(kw_only=True)
class _Search:
    """How far the search for an image's wheels is."""

    profile: ImageProfile
    found: dict[str, Found] = field(default_factory=dict)
    queue: deque[tuple[Requirement, str]] = field(default_factory=deque)
    seen: set[tuple[str, frozenset[str]]] = field(default_factory=set)


def resolve(
    profile: ImageProfile,
    requirements: Sequence[str],
    *,
    kit_requires: Sequence[str],
    find: Callable[[str], Found],
    without: Collection[str] = (),
    say: Callable[[str], object],
) -> list[Found]:
    """Return the wheels to bring to an image.

    Args:
        profile: The image.
        requirements: What is asked for.
        kit_requires: The kit's own `Requires-Dist`.
        find: Returns the wheel of a requirement.
        without: Distributions, normalised, that are neither brought nor looked for.
        say: Where lines go.

    Raises:
        SettingError: When something is no requirement, or the image has what is asked for.
        KitError: When what a wheel requires contradicts the image, or another wheel.
    """
    search = _Search(profile=profile)
    search.queue.extend((_parse(text), "") for text in requirements)
    _follow(search, kit_requires, frozenset(), KIT)
    while search.queue:
        requirement, wanted_by = search.queue.popleft()
        name = normal_name(requirement.name)
        if name in without or _is_there(profile, requirement, wanted_by):
            continue
        if name not in search.found:
            _refuse(name, profile, wanted_by)
            if wanted_by:
                say(f"{wanted_by} requires {requirement.name}, which {profile.name} is not known to have: brought too")
            search.found[name] = find(f"{requirement.name}{requirement.specifier}")
        found = search.found[name]
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise KitError(
                f"{wanted_by or '--add'} requires {requirement.name}{requirement.specifier}, and {found.version} is "
                f"brought to {profile.name}; ask for a version that fits with --add"
            )
        if (name, frozenset(requirement.extras)) not in search.seen:
            search.seen.add((name, frozenset(requirement.extras)))
            _follow(search, found.requires, frozenset(requirement.extras), name)
    return list(search.found.values())


def _parse(text: str) -> Requirement:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"{text!r} is no requirement ({reason}); expected one such as 'ttach>=0.0.3'") from None
    if requirement.url:
        raise SettingError(f"{text!r} gives an address; name a distribution of the index, such as 'ttach>=0.0.3'")
    return requirement


def _follow(search: _Search, requires: Sequence[str], extras: frozenset[str], wanted_by: str) -> None:
    """Queue what a wheel requires on the image's Python."""
    for line in requires:
        requirement = _parse(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate(_environment(search.profile, extra)) for extra in ("", *extras)):
            search.queue.append((requirement, wanted_by))


def _environment(profile: ImageProfile, extra: str) -> dict[str, str]:
    """Return what markers are evaluated against: the image, not this machine."""
    return {
        "extra": extra,
        "implementation_name": "cpython",
        "implementation_version": f"{profile.python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{profile.python}.0",
        "python_version": profile.python,
        "sys_platform": "linux",
    }


def _is_there(profile: ImageProfile, requirement: Requirement, wanted_by: str) -> bool:
    """Return whether the image satisfies what a wheel requires; refuse what it contradicts, or has though asked for."""
    name = normal_name(requirement.name)
    known = {normal_name(package): version for package, version in profile.packages.items()}
    version = known.get("opencv" if name in OPENCV else name)
    if version is None and name not in {normal_name(package) for package in profile.also}:
        return False
    if not wanted_by:
        raise SettingError(
            f"{requirement}: {profile.name} has {name}{f' {version}' if version else ''}, and a wheelhouse brings only "
            "what an image lacks; leave it out"
        )
    if version is not None and not requirement.specifier.contains(version, prereleases=True):
        raise KitError(
            f"{wanted_by} requires {requirement.name}{requirement.specifier}, and {profile.name} has {version}; ask "
            f"for another version of {wanted_by} with --add, or leave it out with --without"
        )
    return True


def _refuse(name: str, profile: ImageProfile, wanted_by: str) -> None:
    if name in NEVER or name.startswith("nvidia-"):
        raise SettingError(
            f"{name} is {f'required by {wanted_by}' if wanted_by else 'asked for'}, and a wheelhouse never brings it; "
            f"write the image's version into the packages of profile {profile.name}, or leave it out with --without"
        )
