"""Training: models, objectives, data, the run folder, and Lightning's `LitVAE`.

`load("runs/digits")` is the trained model of a run's folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lit import LitVAE
    from .run_folder import load

__all__ = ["InputError", "LitVAE", "load"]


class InputError(ValueError):
    """What the user gave cannot be used; the message says why, and what can."""


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and is in an extra of its own.
    if name == "LitVAE":
        from .lit import LitVAE

        return LitVAE
    if name == "load":
        from .run_folder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
