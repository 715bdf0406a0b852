"""Every operator that is fuzzed: a random case of it, its call, and its formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import operators
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor


class Operator(NamedTuple):
    """`make` fills a case; `call` gives the outputs of one call from its tensors and noise;
    `truth` those of all calls in float64, from `[CALLS, *shape]` tensors. Of random cases so many
    are `share` as of an operator with 1 are one."""

    make: Callable[[Case, Draw], None]
    call: Callable[[Case, Tensors, dict[str, Any]], tuple[Tensor, ...]]
    truth: Callable[[Case, Tensors], tuple[Tensor, ...]]
    share: int


OPERATORS = {
    name: Operator(own.make, own.call, own.truth, getattr(own, "SHARE", 1))
    for name, own in operators.found().items()
}
