"""The formula of every likelihood: its negative log-likelihood per element, in nats.

A formula takes the target, the tuple of parameters and the likelihood's numbers, all in the
compute dtype, and is differentiable in the parameters. Its name is the likelihood's form; the
C++ functor and the Triton implementation of that name compute the same.
"""

from . import bernoulli, counts, location, pixels
from ._base import FORMULAS, LOCATION, Formula, formula, location_formula

__all__ = [
    "FORMULAS",
    "LOCATION",
    "Formula",
    "bernoulli",
    "counts",
    "formula",
    "location",
    "location_formula",
    "pixels",
]
