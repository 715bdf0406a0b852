"""The registry of the implementations."""

from __future__ import annotations

from typing import Any

FORMS: dict[str, Any] = {}
# Forms of so many live values that a thread can hold half as many elements at a time.
HEAVY: set[str] = set()


def form(kernel: Any) -> Any:
    """Registers an implementation under its own name."""
    FORMS[kernel.__name__] = kernel
    return kernel


def heavy_form(kernel: Any) -> Any:
    """As `form`, for an implementation whose values would not fit into the registers otherwise."""
    HEAVY.add(kernel.__name__)
    return form(kernel)
