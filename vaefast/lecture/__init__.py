"""A lecture's claims about VAEs, each run on scikit-learn's digits: a number, a picture, and what
is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import blur, bounds, coin, labels, pixelcnn, samples, walks
from .claim import Claim
from .context import Context

__all__ = ["CLAIMS", "Claim", "Context"]

# In the order of the page.
CLAIMS: Mapping[str, Callable[[Context], Claim]] = {
    "coin": coin.run,
    "labels": labels.run,
    "samples": samples.run,
    "bounds": bounds.run,
    "walks": walks.run,
    "blur": blur.run,
    "pixelcnn": pixelcnn.run,
}
