"""Which backend serves a call, and why.

`auto` takes, on CPU: native, else reference; on CUDA: native where its build has code for the GPU
and the operator costs no more by it than by triton (costs.py), else triton, else reference; on any
other device: reference. A backend asked for by name that does not load is an error. A device is
named by its type, or as "cuda:1": GPUs can differ.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from types import ModuleType, TracebackType
from typing import ParamSpec, TypeVar

import torch
from torch.compiler import is_dynamo_compiling

from .. import _install
from .._explain import declined, listening
from . import _context
from .costs import Kind, cost_of

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS = ("auto", "native", "triton", "reference")

# Forms of likelihoods that users registered, each with its Triton implementation as "module:name",
# or "": plain PyTorch serves it then.
USER_FORMS: dict[str, str] = {}

# What a block that is itself compiled asks for: the compiler follows a module's variable, which is
# as before at the end of what it traced.
_traced: tuple[str, ...] = ()

# The backend that this thread and task asks for, in eager execution.
asked = _context.asked.get


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve; the message gives the cause."""


class backend:
    """Context manager, or decorator, that asks for one backend by name.

    It holds for the thread, or the task of asyncio, that enters it; `VAEFAST_BACKEND` is for the
    whole process. Blocks nest, and one object may be entered many times. A backward pass is by the
    backend of its forward pass, wherever it runs; but what `torch.utils.checkpoint` computes again
    there asks anew, on a GPU in a thread of autograd's: give it `context_fn=lambda:
    (vf.backend(name), vf.backend(name))`. A function compiled under one backend is compiled anew
    for another.

    Args:
        name: `"auto"`, `"native"`, `"triton"` or `"reference"`.

    Raises:
        ValueError: the name is unknown.
        BackendError: the backend cannot be loaded; the message gives the cause.
        TypeError: a generator function is decorated; a block inside of it does that.

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
            cause = _cause(name)
            if cause:
                raise BackendError(f"backend {name!r} was asked for but cannot be used: {cause}")
        self.name = name

    def __enter__(self) -> backend:
        if is_dynamo_compiling():
            global _traced
            _traced = (*_traced, self.name)
        else:
            _context.enter(self, self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if is_dynamo_compiling():
            global _traced
            _traced = _traced[:-1]
        else:
            _context.leave(self)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        for kind in (inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            if kind(function):
                raise TypeError(
                    f"backend cannot decorate a generator function, got {function!r}; open a "
                    "block in it"
                )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def later(*args: P.args, **kwargs: P.kwargs) -> object:
                with backend(self.name):
                    return await function(*args, **kwargs)

            return later  # type: ignore[return-value]

        @functools.wraps(function)
        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            # A compiler follows a block only whose object it has seen made.
            with backend(self.name):
                return function(*args, **kwargs)

        return inner


def select(
    device: str | torch.device,
    operator: str = "",
    form: str = "",
    dtype: torch.dtype | None = None,
) -> str:
    """The backend for a call on `device`: the one asked for, else the first that serves, or of two
    on a GPU the one to which the operator in this dtype, of a likelihood's form, costs less.

    Raises:
        BackendError: the one asked for cannot.
    """
    device_type = _name(device)
    if is_dynamo_compiling():
        name: str = _constant(_asked_in_trace(), device_type, operator, form, dtype)
        return name
    chosen = _serving(asked(), device_type, operator, form, dtype)
    if chosen != "native" and listening():
        _say_why(chosen, device_type, Kind(operator, form, dtype))
    return chosen


def _say_why(chosen: str, device_type: str, kind: Kind) -> None:
    """Tells `explain` why it is not the native backend."""
    if (asked() or _from_environment()) != "auto":
        declined("asked", chosen)
        return
    for name in _order(device_type):
        if name == chosen:
            return
        cause = unavailable(name, device_type)
        cost = cost_of(kind)
        if cause is None and cost is not None:
            declined("cost", kind, cost.native, cost.triton, cost.unit)
        else:
            declined("unavailable", name, cause)


def _asked_in_trace() -> str | None:
    """As `asked`, for a compiler."""
    return _traced[-1] if _traced else _context.now


def select_form(device: str | torch.device, form: str, operator: str, dtype: torch.dtype) -> str:
    """As `select`, for a call of a likelihood's form, which may be a user's.

    Raises:
        BackendError: the backend asked for has no kernel of it.
    """
    if form not in USER_FORMS:
        return select(device, operator, form, dtype)
    device_type = _name(device)
    if is_dynamo_compiling():
        name: str = _user_constant(_asked_in_trace(), device_type, form)
        return name
    chosen = _serving_user(asked(), device_type, form)
    if listening():
        usual = select(device)
        if chosen != usual:
            declined("form", form, usual)
    return chosen


def _name(device: str | torch.device) -> str:
    """What the functions below call a device: what is found out is remembered by it."""
    if isinstance(device, str):
        return device
    if device.type != "cuda" or device.index is None:
        return device.type
    return f"cuda:{device.index}"


def _serving_user(forced: str | None, device_type: str, form: str) -> str:
    chosen = _serving(forced, device_type)
    if chosen == "reference":
        return chosen
    triton = USER_FORMS[form]
    by_name = (forced or _from_environment()) != "auto"
    if triton and (chosen == "triton" or not (by_name or unavailable("triton", device_type))):
        _add_implementation(form, triton)
        return "triton"
    if by_name:
        raise BackendError(
            f"backend {chosen!r} was asked for but has no kernel of likelihood {form!r}; 'auto' "
            "and 'reference' serve it"
        )
    return "reference"


def _user_constant(forced: str | None, device_type: str, form: str) -> str:
    """As `_constant`."""
    return _serving_user(forced, device_type, form)


@functools.cache
def _add_implementation(form: str, triton: str) -> None:
    module, _, name = triton.partition(":")
    forms = importlib.import_module(f"{__name__}.triton.likelihoods").FORMS
    forms[form] = getattr(importlib.import_module(module), name)


@functools.cache
def _serving(
    forced: str | None,
    device_type: str,
    operator: str = "",
    form: str = "",
    dtype: torch.dtype | None = None,
) -> str:
    wanted = forced or _from_environment()
    if wanted == "auto":
        return _automatic(device_type, Kind(operator, form, dtype))
    if wanted != "reference":
        _require(wanted, device_type)
    return wanted


def _constant(
    forced: str | None, device_type: str, operator: str, form: str, dtype: torch.dtype | None
) -> str:
    """What a compiler need not trace: it ends in imports."""
    return _serving(forced, device_type, operator, form, dtype)


def _cause(name: str) -> str | None:
    """As `_constant`."""
    return unavailable(name)


# What torch.compiler.assume_constant_result does, but for importing the compiler: 3 s.
_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
_cause._dynamo_marked_constant = True  # type: ignore[attr-defined]
_user_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def available_backends(device: str = "cpu") -> tuple[str, ...]:
    """The backends that can serve tensors on `device`, the one that `auto` takes first, but for the
    operators that cost less by another (`vaefast.info()["by_cost"]`).

    Example:
        >>> "reference" in available_backends()
        True
    """
    return (*(n for n in ("native", "triton") if not unavailable(n, device)), "reference")


def unavailable(name: str, device_type: str | None = None) -> str | None:
    """Why backend `name` cannot serve (tensors on `device_type`), or None where it can."""
    if name == "reference":
        return None
    return _native_cause(device_type) if name == "native" else _triton_cause(device_type)


@functools.cache
def load(name: str, op: str) -> ModuleType:
    """The module of operator `op` in backend `name`."""
    return importlib.import_module(f"{__name__}.{name}.{op}")


def _automatic(device_type: str, kind: Kind) -> str:
    serving = [name for name in _order(device_type) if not unavailable(name, device_type)]
    if len(serving) > 1:
        cost = cost_of(kind)
        return serving[0] if cost is None else cost.chosen
    return (*serving, "reference")[0]


def _order(device_type: str) -> tuple[str, ...]:
    """What `auto` tries before the reference."""
    return ("native",) if device_type == "cpu" else ("native", "triton")


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
    kind, _, index = (device_type or "").partition(":")
    if kind == "cuda":
        archs = core.build_info()["cuda_archs"]
        if not archs:
            return "vaefast._C was built without CUDA; reinstall with VAEFAST_CUDA=1"
        return _gpu_cause(archs, [int(index)] if index else range(torch.cuda.device_count()))
    if kind not in ("", "cpu"):
        return f"there are no native kernels for {device_type}"
    return None


def _gpu_cause(archs: Sequence[str], devices: Sequence[int]) -> str | None:
    """Why a build for `archs` cannot serve every one of these GPUs, or None."""
    for index in devices if torch.cuda.is_available() else ():
        capability = torch.cuda.get_device_capability(index)
        if not runs_on(archs, capability):
            here = "".join(map(str, capability))
            return (
                f"vaefast._C has kernels for compute capability {', '.join(archs)}, and cuda:"
                f"{index} ({torch.cuda.get_device_name(index)}) has {here}; reinstall with "
                f"VAEFAST_CUDA=1 VAEFAST_CUDA_ARCHS={here}"
            )
    return None


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build for `archs`, such as ["80", "90"], has code for a GPU of `capability`.

    Machine code serves its own major version from its own minor version on. The last of `archs`
    has PTX beside it, which every newer GPU compiles. Code for "90a" serves 9.0 alone, PTX too.
    """
    major, minor = capability
    for position, arch in enumerate(archs, 1):
        found = re.fullmatch(r"(\d+)(\d)([af]?)", arch)
        if found is None:
            continue
        has, suffix = (int(found[1]), int(found[2])), found[3]
        if has == capability or (suffix != "a" and has[0] == major and has[1] <= minor):
            return True
        if position == len(archs) and not suffix and has <= capability:
            return True
    return False


@functools.cache
def _triton_cause(device_type: str | None) -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton did not import ({error}); {_install.command('triton')}"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on CPU, Triton kernels run only in its interpreter: set TRITON_INTERPRET=1"
    if (device_type or "cpu").partition(":")[0] not in ("cpu", "cuda"):
        return f"there are no Triton kernels for {device_type}"
    return None
