"""Decisions of weighted runs, counted fast: only what weights can change is looked at again.

Where all runs decide for the same class, every weighted mean does. Elsewhere most classes are beaten by one and the
same other class in every run, and so in every mean; what is left of 168 classes is a few in some of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kaggle_kit.blending.terms import RunTerms
from kaggle_kit.multilabel import mark_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_WIDTHS = (2, 3, 4, 5, 6, 8, 11, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_MOST_PAIRED = 64  # above that many classes, they are not compared each with each
_NONE = -1e30  # the term of no class: finite, as infinity times a weight of 0 is NaN
_BLOCK = 32_768  # candidates' terms of a run in a block of rows, so that all weights' sums of it stay in the cache
_ROUNDING = 1.5e-8  # a probability this far below 0.5 is 0.5 in float32, and so said


class Marks(Protocol):
    """What sums over rows are made of, and by that the metric."""

    def sums(self, weights: Array) -> Floats:
        """Return (K, P, S) sums over the rows of P parts for (K, R) weights."""


@dataclass(frozen=True, kw_only=True)
class _Block:
    """M rows of K candidate classes each.

    Attributes:
        terms: (R, K * M).
        cells: (K, M) part * C + candidate class; classes rise.
        true: (M,) part * C + true class.
        squares: (K, M) squared differences of the candidate's and the true class's number; None where nobody asks.
    """

    terms: Array
    cells: Ints
    true: Ints
    squares: Floats | None


class OpenRows:
    """Counts of multiclass decisions: rows right, rows decided for and rows of each class.

    With `squares` also the sum of squared differences of true and decided classes' numbers.
    """

    def __init__(self, terms: RunTerms, truth: Ints, parts: Ints, num_parts: int, *, squares: bool) -> None:
        """Sort rows into those that weights can change and others.

        Args:
            terms: Of R runs.
            truth: (N,) class indices.
            parts: (N,) numbers 0 to `num_parts` - 1.
            num_parts: P.
            squares: Whether squared differences are wanted.
        """
        self._shape = (num_parts, terms.head.num_classes)
        self._squares = squares
        self._base = np.zeros((num_parts, 3 * self._shape[1] + squares))
        found: dict[int, list[tuple[Array, Array, Array]]] = {}
        for start in range(0, terms.num_rows, terms.rows_a_block):
            rows = slice(start, start + terms.rows_a_block)
            tops = terms.tops(rows)
            unsure = (tops != tops[0]).any(axis=0)
            self._count_closed(truth[rows], parts[rows], tops[0], ~unsure)
            where = start + np.flatnonzero(unsure)
            if len(where):
                for width, own, values, classes in _candidates(terms.block(where)):
                    found.setdefault(width, []).append((where[own], values, classes))
        self._blocks = [block for width in sorted(found) for block in self._blocks_of(found.pop(width), truth, parts)]

    def sums(self, weights: Array) -> Floats:
        """Return (K, P, 3C) counts of hits, decisions and true rows, and if wanted sums of squares as a last column."""
        num, (num_parts, size) = len(weights), self._shape
        cells = num_parts * size
        hits, said = np.zeros(num * cells), np.zeros(num * cells)
        squares = np.zeros(num * num_parts)
        shift = (cells * np.arange(num))[:, None]
        for block in self._blocks:
            sums = (weights @ block.terms.astype(np.float64)).astype(np.float32)  # ties as `mix_head` has them
            picked = _winners(sums.reshape(num, *block.cells.shape))
            rows = np.arange(len(block.true))
            decided = block.cells[picked, rows]  # (K, M)
            said += np.bincount((decided + shift).ravel(), minlength=num * cells)
            hits += np.bincount((decided + shift)[decided == block.true], minlength=num * cells)
            if block.squares is not None:
                places = block.true // size + num_parts * np.arange(num)[:, None]
                squares += np.bincount(places.ravel(), block.squares[picked, rows].ravel(), minlength=num * num_parts)
        moved = [hits.reshape(num, num_parts, size), said.reshape(num, num_parts, size), np.zeros((num, *self._shape))]
        if self._squares:
            moved.append(squares.reshape(num, num_parts, 1))
        return self._base + np.concatenate(moved, axis=2)

    def _count_closed(self, truth: Ints, parts: Ints, decided: Ints, closed: npt.NDArray[np.bool_]) -> None:
        """Count the true classes of all rows, and what is decided in those whose runs agree."""
        (num_parts, size), counts = self._shape, self._base
        true, said = parts * size + truth, parts * size + decided
        for place, cells in enumerate((said[closed & (decided == truth)], said[closed], true)):
            number = np.bincount(cells, minlength=num_parts * size).reshape(self._shape)
            counts[:, place * size : (place + 1) * size] += number
        if self._squares:
            counts[:, -1] += np.bincount(parts[closed], (truth - decided)[closed] ** 2.0, minlength=num_parts)

    def _blocks_of(self, found: list[tuple[Array, Array, Array]], truth: Ints, parts: Ints) -> Iterator[_Block]:
        """Yield blocks of rows with equally many candidates, of their numbers, (R, m, K) terms and (m, K) classes."""
        rows = np.concatenate([one[0] for one in found])
        classes = np.concatenate([one[2] for one in found])
        values = np.concatenate([one[1] for one in found], axis=1)
        step = max(64, _BLOCK // classes.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            own, candidates = rows[part], classes[part].T
            base = parts[own] * self._shape[1]
            yield _Block(
                terms=np.ascontiguousarray(values[:, part].transpose(0, 2, 1)).reshape(len(values), -1),
                cells=base + candidates,
                true=base + truth[own],
                squares=(candidates - truth[own]) ** 2.0 if self._squares else None,
            )


def _winners(sums: Array) -> npt.NDArray[np.intp]:
    """Return (K, M) places of the highest of (K, C, M) sums; of equal ones the first.

    Column by column: `argmax` of few values in each of many rows takes longer.
    """
    best, places = sums[:, 0].copy(), np.zeros((len(sums), sums.shape[2]), np.intp)
    for place in range(1, sums.shape[1]):
        np.copyto(places, place, where=sums[:, place] > best)
        np.maximum(best, sums[:, place], out=best)
    return places


def _candidates(block: Array) -> Iterator[tuple[int, Ints, Array, Ints]]:
    """Sort (R, n, C) terms by how many classes can win.

    Yields:
        A width K, which m rows have so many candidates or hardly fewer, their (R, m, K) terms and (m, K) classes.
    """
    best = block.mean(axis=0).argmax(axis=1)  # (n,): nothing beats it in every run, and it beats most
    own = np.take_along_axis(block, np.broadcast_to(best[:, None], (len(block), len(best), 1)), axis=2)
    higher = np.arange(block.shape[2]) > best[:, None]
    beaten = np.where(higher, (block <= own).all(axis=0), (block < own).all(axis=0))
    classes = np.broadcast_to(np.arange(block.shape[2]), beaten.shape)
    for width, rows, values, few in _packed(block, classes, ~beaten):
        if 2 < width <= _MOST_PAIRED:
            for narrow, places, fewer_values, fewer in _packed(values, few, _unbeaten(values)):
                yield narrow, rows[places], fewer_values, fewer
        else:
            yield width, rows, values, few


def _unbeaten(values: Array) -> npt.NDArray[np.bool_]:
    """Return (m, K) False where a class of (R, m, K) terms is below another in every run.

    A lower class is beaten by a higher one only where that is higher in every run: runs of weight 0 may be the only
    ones that tell them apart.
    """
    left = np.ones(values.shape[1:], bool)
    for place in range(values.shape[2]):
        own = values[:, :, place, None]
        left[:, place + 1 :] &= (values[:, :, place + 1 :] > own).any(axis=0)
        left[:, :place] &= (values[:, :, :place] >= own).any(axis=0)
    return left


def _packed(values: Array, classes: Ints, kept: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Ints, Array, Ints]]:
    """Keep some classes of each row, rows sorted by how many: yield width, rows, (R, m, K) terms and (m, K) classes."""
    counts = kept.sum(axis=1)
    widths = np.array([*(width for width in _WIDTHS if width < kept.shape[1]), max(2, kept.shape[1])])
    fitting = widths[np.searchsorted(widths, counts)]
    for width in np.unique(fitting).tolist():
        rows = np.flatnonzero(fitting == width)
        order = np.argsort(~kept[rows], axis=1, kind="stable")[:, :width]
        picked = values[:, rows[:, None], order]
        picked[:, np.arange(width) >= counts[rows, None]] = _NONE
        yield width, rows, picked, np.take_along_axis(classes[rows], order, axis=1)


@dataclass(frozen=True, kw_only=True)
class _CellBlock:
    """M open cells of n rows, row by row.

    Attributes:
        terms: (R, M).
        cells: (M,) part * C + class.
        true: (M,) whether the class is true.
        starts: (n,) the first cell of each row.
        fine: (n,) whether all other cells of the row are right, whatever the weights.
    """

    terms: Array
    cells: Ints
    true: npt.NDArray[np.bool_]
    starts: Ints
    fine: npt.NDArray[np.bool_]


class OpenCells:
    """Marks of multi-label decisions, as `multilabel.mark_rows` makes them, summed over rows."""

    def __init__(self, terms: RunTerms, truth: Array, parts: Ints, num_parts: int) -> None:
        """Sort cells, a class of a row each, into those that weights can change and others.

        Args:
            terms: Of R runs.
            truth: (N, C) of 0 and 1.
            parts: (N,) numbers 0 to `num_parts` - 1.
            num_parts: P.
        """
        self._shape, self._half = (num_parts, terms.head.num_classes), terms.half
        self._base = np.zeros((num_parts, 3 * self._shape[1] + 2))
        self._blocks = []
        step = max(1, min(terms.rows_a_block, 2 * _BLOCK // self._shape[1]))  # half of the cells are open at most
        for start in range(0, terms.num_rows, step):
            rows = slice(start, start + step)
            self._blocks.append(self._sort_cells(terms.block(rows), np.asarray(truth[rows] > 0), parts[rows]))

    def sums(self, weights: Array) -> Floats:
        """Return (K, P, 3C + 2) sums of marks."""
        num, (num_parts, size) = len(weights), self._shape
        hits, said = np.zeros(num * num_parts * size), np.zeros(num * num_parts * size)
        right = np.zeros(num * num_parts)
        least = (self._half - _ROUNDING) * weights.sum(axis=1, keepdims=True)
        order = np.arange(num)[:, None]
        for block in self._blocks:
            if len(block.cells):
                says = weights @ block.terms.astype(np.float64) >= least  # (K, M)
                cells = block.cells + num_parts * size * order
                said += np.bincount(cells[says], minlength=len(said))
                hits += np.bincount(cells[says & block.true], minlength=len(hits))
                whole = np.logical_and.reduceat(says == block.true, block.starts, axis=1) & block.fine
                part = block.cells[block.starts] // size + num_parts * order
                right += np.bincount(part[whole], minlength=len(right))
        result = np.repeat(self._base[None], num, axis=0)
        result[:, :, :size] += hits.reshape(num, num_parts, size)
        result[:, :, size : 2 * size] += said.reshape(num, num_parts, size)
        result[:, :, -2] += right.reshape(num, num_parts)
        return result

    def _sort_cells(self, values: Array, true: npt.NDArray[np.bool_], parts: Ints) -> _CellBlock:
        """Count the cells of (R, n, C) terms on which all runs agree, and return the others."""
        says = values >= self._half
        unsure = (says != says[0]).any(axis=0)
        # open cells begin as wrong ones, so that their rows are all right only where weights make them so
        marks = mark_rows(true, np.where(unsure, ~true, says[0]))
        size = self._shape[1]
        marks[:, : 2 * size] *= ~np.tile(unsure, 2)
        np.add.at(self._base, parts, marks)
        row, label = np.nonzero(unsure)
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        return _CellBlock(
            terms=values[:, row, label],
            cells=parts[row] * size + label,
            true=true[row, label],
            starts=starts,
            fine=((says[0] == true) | unsure).all(axis=1)[row[starts]],
        )
