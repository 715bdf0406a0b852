"""`vaefast info`: what is installed, which backend serves, what is missing and how to get it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import vaefast

from .. import _install
from .common import console, say

# What setup.py found missing, and how to get it.
_TOOLS = {
    "compiler": "a C++17 compiler (Debian, Ubuntu: apt install g++; conda: conda install "
    "cxx-compiler)",
    "headers": "Python's headers (Debian, Ubuntu: apt install python3-dev)",
    "cmake": "CMake 3.24 or newer (pip install cmake)",
    "ninja": "Ninja (pip install ninja)",
    "pybind11": "pybind11 (pip install pybind11)",
}


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
        table.add_row(name, _text(facts[name] or "not installed"))
    for name, value in facts["native"].items():
        table.add_row(f"native {name}", _text(value))
    for device, causes in facts["backends"].items():
        table.add_row(f"{device}: serves", Text(facts["serves"][device], style="bold"))
        by_cost = facts["by_cost"].get(device, {})
        for name in sorted(set(by_cost.values())):
            kinds = [kind for kind, by in by_cost.items() if by == name]
            table.add_row(f"{device}: {name}, of", _text(kinds))
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
        tool = _TOOLS.get(record.get("missing") or "")
        first = f"install {tool}, then: " if tool else ""
        lines.append(f"  To get it, {first}{_install.command(rebuild=True)}")
        lines += [f"  | {line}" for line in record.get("log") or []]
    elif facts["native"].get("cuda_archs") and on_cuda != "available":
        lines.append(f"The native core does not serve every GPU here: {on_cuda}.")
    elif on_cuda != "available":
        lines.append(f"The native core has no CUDA kernels{cause}; Triton serves where it is.")
        lines.append(
            "  To get them, install nvcc (the CUDA toolkit), then: "
            f"export VAEFAST_CUDA=1; {_install.command(rebuild=True)}"
        )
    if "cuda" in facts["backends"] and not facts["triton"]:
        lines.append(f"Triton is not installed: {_install.command('triton')}")
    return lines


def _text(value: object) -> Text:
    # A str in a table is markup to rich: `[triton]` would vanish.
    if isinstance(value, (list, tuple)):
        return Text(", ".join(map(str, value)) or "none")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(str(value))
