"""The command `vaefast`, in one process with the test."""

from __future__ import annotations

from typer.testing import CliRunner

from vaefast.cli.app import app


def vaefast(*arguments: object, code: int = 0) -> str:
    """Its output; it must end with the exit status `code`, and never in a traceback."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result.output
