"""`vaefast info`: what is installed, which backend serves, what is missing and how to get it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import vaefast

from .common import console, say

_COMPILER = (
    "install a C++17 compiler (Debian, Ubuntu: apt install g++; conda: conda install "
    "cxx-compiler), then: pip install --force-reinstall --no-deps --no-cache-dir vaefast"
)


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Versions, the compiled core, which backend serves each device, and what is missing."""
    facts = vaefast.info()
    record = build_record(Path(vaefast.__file__).parent)
    if as_json:
        typer.echo(json.dumps({**facts, "build": record}, indent=2, default=str))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in ("vaefast", "torch", "triton", "python", "platform", "threads"):
        table.add_row(name, str(facts[name] or "not installed"))
    for name, value in facts["native"].items():
        table.add_row(f"native {name}", _text(value))
    for device, causes in facts["backends"].items():
        table.add_row(f"{device}: serves", f"[bold]{facts['serves'][device]}[/]")
        for name, state in causes.items():
            table.add_row(f"{device}: {name}", _text(state))
    for name, value in facts["settings"].items():
        table.add_row(name, _text(value))
    console.print(table)
    for line in missing(facts, record):
        say(line)


def build_record(package: Path) -> dict[str, Any]:
    """What the installation wrote about building the compiled core; `{}` where it wrote nothing."""
    try:
        record = json.loads((package / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def missing(facts: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """A line on each thing that could be faster here, with its cause and its remedy."""
    lines = []
    reason = record.get("reason")
    cause = f" ({reason})" if reason else ""
    on_cuda = facts["backends"].get("cuda", {}).get("native", "available")
    if "missing" in facts["native"]:
        lines.append(f"The native core is missing{cause}: right results, at the reference's speed.")
        lines.append(f"  To get it, {_COMPILER}")
        lines += [f"  | {line}" for line in record.get("log") or []]
    elif facts["native"].get("cuda_archs") and on_cuda != "available":
        lines.append(f"The native core does not serve every GPU here: {on_cuda}.")
    elif on_cuda != "available":
        lines.append(f"The native core has no CUDA kernels{cause}; Triton serves where it is.")
        lines.append(
            "  To get them, install nvcc (the CUDA toolkit), then: VAEFAST_CUDA=1 pip install "
            "--force-reinstall --no-deps --no-cache-dir vaefast"
        )
    if "cuda" in facts["backends"] and not facts["triton"]:
        lines.append('Triton is not installed: pip install "vaefast[triton]"')
    return lines


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
