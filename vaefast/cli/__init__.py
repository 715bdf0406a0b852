"""The command `vaefast`; what it needs beyond torch is imported when it runs."""

from __future__ import annotations

import sys

from .. import _install


def main() -> None:
    """Entry point of the command; exits with 2 where an extra is missing."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"click", "rich", "typer"}:
            raise
        print(f"vaefast: the command needs {package}: {_install.command('demo')}", file=sys.stderr)
        raise SystemExit(2) from None
    app()
