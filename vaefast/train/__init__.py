"""Training: models, data, objectives, the run folder, and Lightning's `LitVAE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lit import LitVAE

__all__ = ["InputError", "LitVAE"]


class InputError(ValueError):
    """What the user gave cannot be used; the message says why, and what can."""


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and is in an extra of its own.
    if name == "LitVAE":
        from .lit import LitVAE

        return LitVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
