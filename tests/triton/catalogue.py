"""Calls of every operator, as models make them: what is compiled ahead of time, and documented."""

import importlib
import pkgutil

import calls

CALLS = [
    call
    for module in pkgutil.iter_modules(calls.__path__)
    for call in importlib.import_module(f"calls.{module.name}").CALLS
]
