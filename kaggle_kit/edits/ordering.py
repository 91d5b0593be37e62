"""The order of decisions that come from several files."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kaggle_kit.edits.edit import Edit, moment_of

_Followers = dict[str, set[str]]  # {key: keys of what must come behind it}


def in_order(files: Sequence[Sequence[Edit]]) -> list[Edit]:
    """Return the edits of files, each once: those of a file in its order, whatever its clock did, the others by time.

    Where files have the same lines in different orders, time decides among those lines, but that an undo stays behind
    what it undoes. The order of the files themselves does not matter.
    """
    edits = {edit.key: edit for file in files for edit in file}
    undone = {(edit.of, edit.key) for edit in edits.values() if edit.of}
    entangled = _entangled(edits, undone.union(*(_pairs(file, frozenset()) for file in files)))
    followers: _Followers = {key: set() for key in edits}
    for first, second in undone.union(*(_pairs(file, entangled) for file in files)):
        followers[first].add(second)
    return [edits[key] for key in _sorted(edits, followers, lambda key: (moment_of(edits[key].at), key))]


def _pairs(file: Iterable[Edit], entangled: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, one that comes behind it), from which a file's order follows, but for that among entangled ones."""
    last, loose = "", list[str]()
    for edit in file:
        if last:
            yield last, edit.key
        if edit.key in entangled:
            loose.append(edit.key)
        else:
            yield from ((key, edit.key) for key in loose)
            last, loose = edit.key, []


def _entangled(keys: Collection[str], pairs: Collection[tuple[str, str]]) -> set[str]:
    """Return the keys that lie in circles or between two: what is left when all that nothing precedes or follows goes.

    Args:
        keys: All there are.
        pairs: (a key, one that must come behind it).
    """
    left = set(keys)
    for way in (pairs, [(second, first) for first, second in pairs]):
        followers: _Followers = {key: set() for key in left}
        for first, second in way:
            if first in left and second in left:
                followers[first].add(second)
        left.difference_update(_sorted(left, followers, lambda key: key))
    return left


def _sorted(keys: Collection[str], followers: Mapping[str, set[str]], rank: Callable[[str], Any]) -> list[str]:
    """Return keys, of those that may come next always the lowest rank; those in circles lack, and what follows those.

    Args:
        keys: All there are.
        followers: {key: keys that must come behind it}.
        rank: Of a key, another for each.
    """
    before = dict.fromkeys(keys, 0)
    for behind in followers.values():
        for key in behind:
            before[key] += 1
    free = [(rank(key), key) for key, number in before.items() if not number]
    heapq.heapify(free)
    found = []
    while free:
        key = heapq.heappop(free)[1]
        found.append(key)
        for one in followers[key]:
            before[one] -= 1
            if not before[one]:
                heapq.heappush(free, (rank(one), one))
    return found
