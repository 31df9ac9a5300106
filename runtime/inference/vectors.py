"""Many vectors in little memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import overload


class Vectors(Sequence[tuple[float, ...]]):
    """Vectors of equal length, kept as one block of 32-bit floats: four bytes a number.

    A vector is made into a tuple when it is asked for. ``numpy.asarray(vectors.matrix)`` takes them
    all without a copy.
    """

    __slots__ = ("_block", "_count", "_dimensions")

    def __init__(self, block: array[float], dimensions: int) -> None:
        """Vectors of ``dimensions`` numbers each, one after another in ``block``."""
        self._block = block
        self._dimensions = dimensions
        self._count = len(block) // dimensions

    @property
    def dimensions(self) -> int:
        """How many numbers each vector has."""
        return self._dimensions

    @property
    def matrix(self) -> memoryview[float]:
        """All numbers, read-only: one row a vector."""
        shape = (self._count, self._dimensions)
        return memoryview(self._block).cast("B").cast("f", shape).toreadonly()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> tuple[float, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[float, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[float, ...] | list[tuple[float, ...]]:
        places = range(self._count)[index]
        if isinstance(places, range):
            return [self._vector(place) for place in places]
        return self._vector(places)

    def __iter__(self) -> Iterator[tuple[float, ...]]:
        return map(self._vector, range(self._count))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == tuple(theirs) for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._count} vectors of {self._dimensions} numbers>"

    def _vector(self, place: int) -> tuple[float, ...]:
        start = place * self._dimensions
        return tuple(self._block[start : start + self._dimensions])


class VectorBuilder:
    """Room for a known number of vectors, filled in order."""

    __slots__ = ("_block", "_count", "_dimensions", "_filled")

    def __init__(self, count: int) -> None:
        self._count = count
        self._dimensions = 0
        self._filled = 0
        self._block: array[float] = array("f")

    def add(self, vector: Sequence[float]) -> None:
        """Take the next vector, made to have the Euclidean length 1.

        Raises:
            ValueError: It differs from the first in length, or has no direction.
        """
        if not self._filled:
            self._dimensions = len(vector)
            self._block = array("f", bytes(4 * self._dimensions * self._count))
        if len(vector) != self._dimensions:
            raise ValueError("its vectors differ in length")
        length = math.hypot(*vector)
        if not math.isfinite(length) or length == 0:
            raise ValueError("a vector has no direction")
        if abs(length - 1) >= 1e-4:  # most engines have seen to it
            vector = [number / length for number in vector]
        start = self._filled * self._dimensions
        self._block[start : start + self._dimensions] = array("f", vector)
        self._filled += 1

    def built(self) -> Vectors:
        """The vectors that were taken."""
        return Vectors(self._block, self._dimensions)
