"""Which backend serves a call, and why.

`auto` takes, on CPU: native, else reference; on CUDA: native, else triton, else reference; on
any other device: reference. A backend asked for by name that does not load is an error.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType, TracebackType

import torch

from .. import _install

BACKENDS = ("auto", "native", "triton", "reference")

# Forms of likelihoods that users registered, and their Triton twins as "module:name" or "": plain
# PyTorch serves them, or Triton where there is a twin.
USER_FORMS: dict[str, str] = {}

# The backend that a context manager asks for.
forced: str | None = None


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve; the message gives the cause."""


class backend:
    """Context manager that asks for one backend by name.

    Args:
        name: `"auto"`, `"native"`, `"triton"` or `"reference"`.

    Raises:
        ValueError: the name is unknown.
        BackendError: the backend cannot be loaded; the message gives the cause.

    Example:
        >>> import torch, vaefast as vf
        >>> with vf.backend("reference"):
        ...     kl = vf.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> float(kl)
        0.0
    """

    def __init__(self, name: str) -> None:
        _check_name(name, "backend")
        if name not in ("auto", "reference"):
            cause = unavailable(name)
            if cause:
                raise BackendError(f"backend {name!r} was asked for but cannot be used: {cause}")
        self.name = name
        self._previous: str | None = None

    def __enter__(self) -> backend:
        global forced
        self._previous = forced
        forced = self.name
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global forced
        forced = self._previous


def select(device_type: str) -> str:
    """The backend for a call on `device_type`: the one asked for, else the first that serves.

    Raises:
        BackendError: the one asked for cannot.
    """
    if torch.compiler.is_compiling():
        name: str = _constant(forced, device_type)
        return name
    return _serving(forced, device_type)


def select_form(device_type: str, form: str) -> str:
    """As `select`, for a call of a likelihood's form, which may be a user's.

    Raises:
        BackendError: the backend asked for has no kernel of it.
    """
    if form not in USER_FORMS:
        return select(device_type)
    if torch.compiler.is_compiling():
        name: str = _user_constant(forced, device_type, form)
        return name
    return _serving_user(forced, device_type, form)


def _serving_user(forced: str | None, device_type: str, form: str) -> str:
    chosen = _serving(forced, device_type)
    if chosen == "reference":
        return chosen
    twin = USER_FORMS[form]
    asked = (forced or _from_environment()) != "auto"
    if twin and (chosen == "triton" or not (asked or unavailable("triton", device_type))):
        _add_twin(form, twin)
        return "triton"
    if asked:
        raise BackendError(
            f"backend {chosen!r} was asked for but has no kernel of likelihood {form!r}; 'auto' "
            "and 'reference' serve it"
        )
    return "reference"


def _user_constant(forced: str | None, device_type: str, form: str) -> str:
    """As `_constant`."""
    return _serving_user(forced, device_type, form)


@functools.cache
def _add_twin(form: str, twin: str) -> None:
    module, _, name = twin.partition(":")
    forms = importlib.import_module(f"{__name__}.triton.likelihoods").FORMS
    forms[form] = getattr(importlib.import_module(module), name)


@functools.cache
def _serving(forced: str | None, device_type: str) -> str:
    wanted = forced or _from_environment()
    if wanted == "auto":
        return _automatic(device_type)
    if wanted != "reference":
        _require(wanted, device_type)
    return wanted


def _constant(forced: str | None, device_type: str) -> str:
    """What a compiler need not trace: it ends in imports."""
    return _serving(forced, device_type)


# What torch.compiler.assume_constant_result does, but for importing the compiler: 3 s.
_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
_user_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def available_backends(device: str = "cpu") -> tuple[str, ...]:
    """The backends that can serve tensors on `device`, the one that `auto` takes first.

    Example:
        >>> "reference" in available_backends()
        True
    """
    order = {"cpu": ("native", "triton"), "cuda": ("native", "triton")}.get(device, ())
    return (*(name for name in order if not unavailable(name, device)), "reference")


def unavailable(name: str, device_type: str | None = None) -> str | None:
    """Why backend `name` cannot serve (tensors on `device_type`), or None where it can."""
    if name == "reference":
        return None
    return _native_cause(device_type) if name == "native" else _triton_cause(device_type)


@functools.cache
def load(name: str, op: str) -> ModuleType:
    """The module of operator `op` in backend `name`."""
    return importlib.import_module(f"{__name__}.{name}.{op}")


def _automatic(device_type: str) -> str:
    if device_type == "cpu":
        return "reference" if _native_cause("cpu") else "native"
    if device_type == "cuda":
        if not _native_cause("cuda"):
            return "native"
        return "reference" if _triton_cause("cuda") else "triton"
    return "reference"


def _from_environment() -> str:
    name = os.environ.get("VAEFAST_BACKEND", "auto")
    _check_name(name, "VAEFAST_BACKEND")
    return name


def _check_name(name: str, what: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")


def _require(name: str, device_type: str) -> None:
    cause = unavailable(name, device_type)
    if cause:
        raise BackendError(
            f"backend {name!r} was asked for but cannot serve {device_type} tensors: {cause}"
        )


@functools.cache
def _native_cause(device_type: str | None) -> str | None:
    try:
        core = importlib.import_module("vaefast._C")
    except ImportError as error:
        return f"the compiled core vaefast._C did not load ({error}); `vaefast info` says more"
    if device_type == "cuda" and not core.build_info()["cuda_archs"]:
        return "vaefast._C was built without CUDA; reinstall with VAEFAST_CUDA=1"
    if device_type not in (None, "cpu", "cuda"):
        return f"there are no native kernels for {device_type}"
    return None


@functools.cache
def _triton_cause(device_type: str | None) -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton did not import ({error}); {_install.command('triton')}"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on CPU, Triton kernels run only in its interpreter: set TRITON_INTERPRET=1"
    if device_type not in (None, "cpu", "cuda"):
        return f"there are no Triton kernels for {device_type}"
    return None
