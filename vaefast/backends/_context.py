"""The backend that a `with vaefast.backend(...)` block asks for, in this thread and task.

`asked` is a context variable: a new thread has none, a task of asyncio a copy of its creator's. A
compiler cannot trace a context variable, but it reads `now`, an attribute of this module that is
not in its dictionary, by Python's own `getattr`, and so does the guard that it makes of it: in the
thread and task of each later call. A compiled function is traced anew for another backend.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

asked: ContextVar[str | None] = ContextVar("vaefast.backend", default=None)
# What lies under it: each open block's name and the object whose block it is, the last one last.
blocks: ContextVar[tuple[tuple[object, str], ...]] = ContextVar(
    "vaefast.backend.blocks", default=()
)

if TYPE_CHECKING:
    now: str | None
else:

    def __getattr__(name):
        if name == "now":
            return asked.get()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def enter(block: object, name: str) -> None:
    """Asks for backend `name` until `leave(block)`."""
    blocks.set((*blocks.get(), (block, name)))
    asked.set(name)


def leave(block: object) -> None:
    """Takes back the last `enter` of `block`, also where others were entered since.

    Nothing happens in a context that it was not entered in: a generator may be closed in another.
    """
    opened = blocks.get()
    for index in range(len(opened) - 1, -1, -1):
        if opened[index][0] is block:
            left = (*opened[:index], *opened[index + 1 :])
            blocks.set(left)
            asked.set(left[-1][1] if left else None)
            return
