"""What a claim's run found, and how differences are judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..report.page import Html


@dataclass
class Claim:
    """A claim, what came out, and the parts of the page that show it.

    `holds`: True, False, or None where it holds in part. `outcome`: that in a sentence.
    `numbers`: everything that the text and the pictures stand on, ready for JSON.
    """

    title: str
    says: str
    holds: bool | None
    outcome: str
    numbers: dict[str, Any]
    parts: list[Html] = field(default_factory=list)


class Difference(NamedTuple):
    """Mean of paired differences, its standard error (NaN for one pair), and how many there are."""

    mean: float
    error: float
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 where the mean is further than two standard errors from 0, else 0. Of one pair
        it is the difference's own sign."""
        if self.pairs == 1:
            return (self.mean > 0) - (self.mean < 0)
        if abs(self.mean) <= 2 * self.error:
            return 0
        return 1 if self.mean > 0 else -1

    def numbers(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        error = None if math.isnan(self.error) else self.error
        return {"mean": self.mean, "error": error, "pairs": self.pairs}


def difference(left: Sequence[float], right: Sequence[float]) -> Difference:
    """`left` minus `right`, pair by pair."""
    pairs = [a - b for a, b in zip(left, right, strict=True)]
    mean, spread = mean_std(pairs)
    return Difference(mean, spread / math.sqrt(len(pairs)), len(pairs))


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; that of one value is NaN."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def moments(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation for JSON; that of one value is None."""
    mean, std = mean_std(values)
    return {"mean": mean, "std": None if math.isnan(std) else std}


def judge(signs: Sequence[bool | int]) -> bool | None:
    """True where all signs are positive, False where none is, else None."""
    good = [sign > 0 for sign in signs]
    return True if all(good) else None if any(good) else False


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`mean ± standard deviation`, or the value where there is but one."""
    mean, std = mean_std(values)
    return f"{mean:{form}}" if math.isnan(std) else f"{mean:{form}} ± {std:{form}}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; `none` where there are none."""
    if not names:
        return "none"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
