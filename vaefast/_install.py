"""The command that installs the library again as it was installed: for an extra, or a rebuild."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_ELSEWHERE = "in a checkout of vaefast: "


def command(extra: str | None = None, *, rebuild: bool = False) -> str:
    """What to type to get `extra`, or a compiled core built anew, for this installation.

    pip keeps what is installed and fits, torch first of all.

    Args:
        extra: an extra of pyproject.toml, such as "triton".
        rebuild: build and install the library again, and nothing else.
    """
    options = "--force-reinstall --no-deps " if rebuild else ""
    where, target = _source(extra)
    # From an index or an archive, pip would hand out the wheel that it built last time.
    options += "--no-cache-dir " if rebuild and not where else ""
    return f"{where}pip install {options}{target}"


def _source(extra: str | None) -> tuple[str, str]:
    """Where to be, and what to name to pip; the first is empty where any place will do."""
    tail = f"[{extra}]" if extra else ""
    record = _direct_url()
    if record is None:
        return "", _quoted(f"vaefast{tail}")
    url, local = record.get("url", ""), _path(record.get("url", ""))
    if "vcs_info" in record:
        return "", _quoted(f"vaefast{tail} @ {record['vcs_info'].get('vcs', 'git')}+{url}")
    # A wheel cannot be built again.
    if local is not None and local.is_file() and (extra or local.suffix != ".whl"):
        return "", _quoted(f"{local}{tail}")
    dot = ("-e " if record.get("dir_info", {}).get("editable") else "") + _quoted(f".{tail}")
    if local is not None and (local / "pyproject.toml").is_file():
        return f"cd {shlex.quote(str(local))} && ", dot
    return _ELSEWHERE, _quoted(f".{tail}")


def _direct_url() -> dict[str, Any] | None:
    """PEP 610's record: None where pip took the library from an index by its name."""
    try:
        text = importlib.metadata.distribution("vaefast").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        # Imported from a checkout that is not installed.
        return {"url": Path(__file__).resolve().parent.parent.as_uri()}
    try:
        record = json.loads(text) if text else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _quoted(target: str) -> str:
    # A bracket means something to zsh; double quotes are any shell's, cmd's too.
    return f'"{target}"' if any(mark in target for mark in "[]@ ") else target
