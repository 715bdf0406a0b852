"""Python programs that tests start."""

from __future__ import annotations

import sys

# At the checkout's root the folder vaefast/ would be imported in place of what is installed. The
# option -P does the same from Python 3.11 on.
_NOT_FROM_HERE = "import sys; sys.path[:] = filter(None, sys.path)\n"


def python(code: str, *arguments: object) -> list[str]:
    """The command of `python -c` that imports nothing from the folder it is run in."""
    return [sys.executable, "-c", _NOT_FROM_HERE + code, *map(str, arguments)]
