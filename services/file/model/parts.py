"""How a file is cut into the parts of an upload."""

from __future__ import annotations

from dataclasses import dataclass

from .purposes import GIB, MIB

PART_BYTES = 8 * MIB
"""S3 takes 5 MiB at least, but for the last part, and 10,000 parts at most: 8 MiB are enough for any size that is allowed."""

SINGLE_MOST = 1 * GIB
"""Bytes up to which a file may come by one PUT, which cannot be resumed and has 15 minutes to begin."""


@dataclass(frozen=True, slots=True)
class PartPlan:
    size: int
    part_size: int

    @property
    def count(self) -> int:
        return -(-self.size // self.part_size)

    def size_of(self, number: int) -> int:
        """Bytes of a part; the first has the number 1. Raises ValueError for a number that the file does not have."""
        if not 1 <= number <= self.count:
            raise ValueError(f"there is no part {number}")
        return min(self.part_size, self.size - (number - 1) * self.part_size)
