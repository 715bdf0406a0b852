"""The elementwise likelihoods inside kernels: each implements the reference formula of its name.

It takes the target x, the parameters theta (a tuple of three, those its form has first) and the
form's numbers, all in the compute dtype, and returns -log p(x | theta) in nats and its derivative
in each parameter. Adding a likelihood is adding a function; what a kernel does not use of it, the
compiler drops.
"""

from . import bernoulli, counts, location, pixels
from ._base import FORMS, HEAVY, form, heavy_form

__all__ = ["FORMS", "HEAVY", "bernoulli", "counts", "form", "heavy_form", "location", "pixels"]
