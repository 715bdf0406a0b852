"""What was found for tensors of one look, found again by a quicker question than to ask each tensor
for its shape, strides, dtype, device and class."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from ._torch import Look, look_of

# Of one kind of call; each is a question more to the calls that look otherwise.
LIMIT = 4


class Looks(dict[Hashable, tuple[tuple[Look, Any], ...]]):
    """By kind of call, which says how many tensors there are: looks, and what was found."""

    __slots__ = ()

    def find(self, kind: Hashable, tensors: tuple[Tensor | None, ...]) -> Any:
        """None where no tensors that look so are known."""
        for looks_so, found in self.get(kind, ()):
            if looks_so(*tensors):
                return found
        return None

    def add(self, kind: Hashable, tensors: tuple[Tensor | None, ...], found: Any) -> None:
        """Tensors that have passed all checks; with an absent one they are not kept."""
        looks = self.get(kind, ())
        present = [t for t in tensors if t is not None]
        if len(looks) < LIMIT and len(present) == len(tensors):
            self[kind] = (*looks, (look_of(*present), found))
