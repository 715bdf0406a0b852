"""Operators registered with torch: the schema, the flattening of the settings and what undoes it
come from the types of the settings' NamedTuple.

A number in a schema is a constant of a compiled graph: one that changes from call to call (an
annealed temperature, 1 / B of a batch of any size) would be compiled anew each time. So a compiler
is shown the numbers that it does not know as one tensor, `floats`, which is all of the settings'
floats in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import _torch, backends
from .._explain import declined, served
from .._torch import dispatch_modes, is_zero_tensor

lib = torch.library.Library("vaefast", "FRAGMENT")

PLAIN = (Tensor, torch.nn.Parameter)


def direct(*tensors: Tensor | None) -> bool:
    """True where a kernel may be called past torch's dispatcher, which costs some 10 us a call.

    Not under a mode or a tracer that must see the operator, for a subclass with a dispatcher of
    its own, or for a tensor whose memory holds other numbers than it shows (a negated view), or
    is not there (a zero tensor, a batch that vmap shows one by one, a functional tensor).

    Raises:
        RuntimeError: a tensor's storage was resized to nothing.
    """
    if is_dynamo_compiling():
        return False
    if dispatch_modes():
        declined("mode")
        return False
    emptied: Tensor | None = None
    try:
        # A plain loop: a generator in all() takes twice the time.
        for t in tensors:
            if t is None:
                continue
            if type(t) not in PLAIN:
                declined("class", type(t).__name__)
                return False
            if t.is_neg():
                declined("negated")
                return False
            if not t.data_ptr() and t.numel():
                if is_zero_tensor(t) or t.is_meta or t.untyped_storage().nbytes():
                    declined("memory")
                    return False
                emptied = t
    except RuntimeError:
        declined("memory")
        return False
    if emptied is not None:
        raise RuntimeError(
            f"a tensor of shape {list(emptied.shape)} has no memory: its storage was resized to "
            "nothing"
        )
    return True


_TYPES = {
    str: "str",
    bool: "bool",
    int: "SymInt",
    float: "float",
    torch.dtype: "ScalarType",
    tuple[float, ...]: "float[]",
    tuple[str, ...]: "str[]",
}


class Operator:
    """The operator `vaefast::<name>` of some tensors and settings, by whichever backend.

    Args:
        name: as in `torch.ops.vaefast`, and of the function in a backend's module.
        tensors: their schema.
        options: the settings' NamedTuple, which may hold another; None for no settings.
        returns: the results' schema.
        fake: (*tensors, options, *also) -> results without numbers.
        also: the schema of what comes behind the settings.
        module: the backends' module, where it has another name.
        finish: what is made of the backend's results, given them and the first tensor.
        serve: (*tensors, options, *also, backend) -> results, instead of the backend's module.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        options: type | None,
        returns: str,
        fake: Callable[..., Any],
        *,
        also: str = "",
        module: str = "",
        finish: Callable[..., Any] | None = None,
        serve: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.module, self.finish = name, module or name, finish
        self.serve = serve
        self._options = options
        self._tensors = len(tensors.split(","))
        self._lists = "[]" in tensors
        settings = [] if options is None else _schema(options)
        self._settings = len(settings)
        # Behind what the backend's function takes.
        self._last = ("Tensor? floats", "str backend") if settings else ("str backend",)
        parts = [tensors, *settings, also, *self._last]
        lib.define(f"{name}({', '.join(part for part in parts if part)}) -> {returns}")
        lib.impl(name, self._run, "CompositeExplicitAutograd")
        self._fake = fake
        torch.library.register_fake(f"vaefast::{name}", self._shapes, lib=lib)

    def call(self, backend: str, numbers: Tensor | None, *args: Any) -> Any:
        """The results for (*tensors, options, *also): by torch's dispatcher where one of the
        tensors, or what is active, makes it see the call."""
        seen: Sequence[Any] = args[: self._tensors]
        if self._lists:
            seen = [t for one in seen for t in (one if isinstance(one, list) else (one,))]
        if direct(*seen):
            return self.direct(backend, *args)
        return self.routed(backend, numbers, *args)

    def direct(self, backend: str, *args: Any) -> Any:
        """The results for (*tensors, options, *also) by a backend, past torch's dispatcher."""
        served(self.name, backend, "direct")
        return self.by(backend, *args)

    def by(self, backend: str, *args: Any) -> Any:
        """As `direct`, of which nothing is said to `explain`."""
        if self.serve is not None:
            return self.serve(*args, backend)
        return getattr(backends.load(backend, self.module), self.name)(*args)

    def _shapes(self, *args: Any) -> Any:
        served(self.name, args[-1], "registered")
        return self._fake(*self._call(args, None))

    def routed(self, backend: str, numbers: Tensor | None, *args: Any) -> Any:
        """The same by torch's dispatcher, for whoever must see it."""
        packed: list[Any] = [*args[: self._tensors]]
        rest = args[self._tensors :]
        if self._options is not None:
            packed += _flat(rest[0])
            rest = rest[1:]
        operator: Any = getattr(torch.ops.vaefast, self.name)
        last = (numbers, backend) if self._settings else (backend,)
        return operator(*packed, *rest, *last)

    def _run(self, *args: Any) -> Any:
        numbers = args[-2] if self._settings else None
        # A CPU tensor's numbers: nothing waits for a device.
        call = self._call(args, None if numbers is None else iter(numbers.tolist()))
        served(self.name, args[-1], "registered")
        results = self.by(args[-1], *call)
        return results if self.finish is None else self.finish(results, call[0])

    def _call(self, args: Sequence[Any], floats: Iterator[float] | None) -> list[Any]:
        """(*tensors, options, *also), of the operator's arguments."""
        call = [*args[: -len(self._last)]]
        first, last = self._tensors, self._tensors + self._settings
        if self._options is not None:
            call[first:last] = [_rebuilt(self._options, iter(call[first:last]), floats)]
        return call


def settled(options: Any) -> tuple[Any, Tensor | None]:
    """`options` for a compiled graph, and all of their floats as a tensor where it does not know
    one of them, which `options` then hold a 0 for."""
    if not torch.compiler.is_compiling():
        return options, None
    floats = _floats(options)
    if all(_torch.known(value) for value in floats):
        return options, None
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return _without_floats(options), torch.stack([one * value for value in floats])


# The schema's type of each of a NamedTuple's fields, "" for another NamedTuple; and its own.
_KINDS: dict[type, tuple[str, ...]] = {}
_HINTS: dict[type, tuple[type, ...]] = {}


def _schema(options: type) -> list[str]:
    hints = get_type_hints(options)
    _HINTS[options] = tuple(hints.values())
    _KINDS[options] = tuple(_TYPES.get(kind, "") for kind in hints.values())
    found: list[str] = []
    for name, kind in hints.items():
        found += [f"{_TYPES[kind]} {name}"] if kind in _TYPES else _schema(kind)
    return found


def _flat(options: Any) -> list[Any]:
    """The settings in the schema's order."""
    flat: list[Any] = []
    for kind, value in zip(_KINDS[type(options)], options, strict=True):
        if kind:
            flat.append([*value] if isinstance(value, tuple) else value)
        else:
            flat += _flat(value)
    return flat


def _floats(options: Any) -> list[Any]:
    floats: list[Any] = []
    for kind, value in zip(_KINDS[type(options)], options, strict=True):
        if kind == "float":
            floats.append(value)
        elif kind == "float[]":
            floats += value
        elif not kind:
            floats += _floats(value)
    return floats


def _without_floats(options: Any) -> Any:
    changed: list[Any] = []
    for kind, value in zip(_KINDS[type(options)], options, strict=True):
        if kind == "float":
            value = 0.0
        elif kind == "float[]":
            value = (0.0,) * len(value)
        elif not kind:
            value = _without_floats(value)
        changed.append(value)
    return type(options)(*changed)


def _rebuilt(options: type, flat: Iterator[Any], floats: Iterator[float] | None) -> Any:
    """What `_flat` was made of, with its floats replaced by these."""
    values: list[Any] = []
    for kind, hint in zip(_KINDS[options], _HINTS[options], strict=True):
        if not kind:
            values.append(_rebuilt(hint, flat, floats))
            continue
        value = next(flat)
        if floats is not None and kind == "float":
            value = next(floats)
        elif floats is not None and kind == "float[]":
            value = [next(floats) for _ in value]
        values.append(tuple(value) if isinstance(value, (list, tuple)) else value)
    return options(*values)
