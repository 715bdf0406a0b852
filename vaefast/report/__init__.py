"""Reports: one HTML page that holds everything it shows and needs no network."""

from __future__ import annotations

from .page import Html, Page
from .run import keep_held_out, write_report

__all__ = ["Html", "Page", "keep_held_out", "write_report"]
