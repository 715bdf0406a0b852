"""Entry point of the command `vaefast`, outside the package, which needs PyTorch to be imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command; exits with 2 and one line where PyTorch is missing."""
    try:
        from vaefast.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(f"vaefast: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run()
