"""Counter-based noise: the state that names a stream, and the normals and uniforms it holds.

A state is an int64 tensor `[seed, offset]`, or `[B, 2]` for one stream per sample. A value
depends only on the state and its place in the tensor (Philox4x32-10, Salmon et al. 2011), so
every backend, thread count and launch shape gives the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _torch, backends
from .backends._options import BINARIZE, LIKELIHOOD, POSTERIOR

__all__ = ["BINARIZE", "LIKELIHOOD", "POSTERIOR", "draw", "make_state", "normal", "uniform"]

_lib = torch.library.Library("vaefast", "FRAGMENT")
# The one form that is right in eager, under fullgraph and in compile with checkpointing: a
# tensor argument (without one Inductor asserts) and the tag (without it checkpointing
# recomputes other noise and the gradients are silently wrong).
_lib.define("draw(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_lib.define(
    "noise(Tensor state, SymInt[] shape, ScalarType dtype, str kind, int purpose, int offset, "
    "str backend) -> Tensor"
)


_MOST = torch.iinfo(torch.int64).max


def draw_unsettled(like: Tensor) -> Tensor:
    """As `draw`, but the state's second number is still to become 0, which the kernel sees to: the
    fewest operators there can be. For a plain tensor, where no mode, tracer or transform is active.
    """
    return like.new_empty(2, dtype=torch.int64).random_()


def transformed() -> bool:
    """True under a transform of torch.func that no compiler traces."""
    return not torch.compiler.is_compiling() and _torch.transforms_active()


def _draw(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    device = like.device if generator is None else generator.device
    if transformed():
        # In place, a vmap has one number for all. These are the numbers of random_() below.
        fresh = torch.randint(-1, _MOST, (2,), device=device, generator=generator)
        return torch.cat([fresh[:1] + 1, fresh.new_zeros(1)])
    state = torch.empty(2, dtype=torch.int64, device=device).random_(generator=generator)
    state.select(0, 1).zero_()
    return state


def _draw_fake(like: Tensor) -> Tensor:
    return like.new_empty(2, dtype=torch.int64)


def _noise(
    state: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    purpose: int,
    offset: int,
    backend: str,
) -> Tensor:
    module = backends.load(backend, "noise")
    result: Tensor = module.noise(state, tuple(shape), dtype, kind, purpose, offset)
    return result


def _noise_fake(
    state: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    purpose: int,
    offset: int,
    backend: str,
) -> Tensor:
    return state.new_empty(shape, dtype=dtype)


_lib.impl("draw", _draw, "CompositeExplicitAutograd")
_lib.impl("noise", _noise, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::draw", _draw_fake, lib=_lib)
torch.library.register_fake("vaefast::noise", _noise_fake, lib=_lib)


def draw(like: Tensor) -> Tensor:
    """A fresh state `[seed, 0]` on `like`'s device from torch's default generator."""
    if torch.compiler.is_compiling() or _torch.dispatch_modes():
        state: Tensor = torch.ops.vaefast.draw(like)
        return state
    return _draw(like)


Seed = int | Tensor | Sequence[int]
Generator = torch.Generator | Sequence[torch.Generator]


def make_state(
    like: Tensor,
    batch: int,
    seed: Seed | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """The state that `seed` or `generator` names, or one drawn from the default generator.

    Args:
        like: a tensor on the device the noise is wanted on.
        batch: B, the length a sequence of seeds or generators must have.
        seed: an int, a state tensor (int64 `[2]` or `[B, 2]`), or (outside of CUDA graphs) a
            sequence of B ints.
        generator: a `torch.Generator` (a CPU one serves a CUDA tensor too, outside of CUDA
            graphs), or a sequence of B of them.

    Raises:
        ValueError: both are given, or a length or shape does not fit.
        TypeError: either is of another type.
    """
    if seed is None and generator is None:
        return draw(like)
    if seed is not None and generator is not None:
        raise ValueError("seed and generator exclude each other, got both")
    if generator is not None:
        return _from_generator(like, batch, generator)
    if isinstance(seed, Tensor):
        return _checked_state(like, batch, seed)
    if isinstance(seed, bool) or not isinstance(seed, (int, Sequence)):
        raise TypeError(
            f"seed must be an int, a state Tensor or a sequence of ints, got {type(seed).__name__}"
        )
    if isinstance(seed, int):
        return _filled(_signed(seed), like)
    if len(seed) != batch or not all(isinstance(s, int) for s in seed):
        raise ValueError(f"seed as a sequence must hold one int per sample, {batch}, got {seed!r}")
    rows = torch.tensor([[_signed(s), 0] for s in seed], dtype=torch.int64, device="cpu")
    return _sent(rows.view(batch, 2), like.device)


def normal(
    shape: Sequence[int],
    state: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    purpose: int = POSTERIOR,
    offset: int = 0,
) -> Tensor:
    """Standard normal noise `[B, *latent]` (or `[num_samples, B, *latent]` by `samples` below).

    Args:
        shape: of one `[B, *latent]` tensor.
        state: int64 `[2]`, or `[B, 2]` with one stream per sample.
        dtype: of the result; the arithmetic is float32, or float64 if that is asked for.
        purpose: which of a state's independent streams: `POSTERIOR`, `BINARIZE`, `LIKELIHOOD`.
        offset: elements of the stream to skip, as a rank of a sharded batch does.

    Example:
        >>> state = torch.tensor([7, 0])
        >>> whole = normal((4, 8), state)
        >>> torch.equal(whole[2:], normal((2, 8), state, offset=16))
        True
    """
    return _dispatch(shape, state, dtype, "normal", purpose, offset)


def uniform(
    shape: Sequence[int],
    state: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    purpose: int = POSTERIOR,
    offset: int = 0,
) -> Tensor:
    """Uniform noise in (0, 1], arguments as `normal`."""
    return _dispatch(shape, state, dtype, "uniform", purpose, offset)


def _dispatch(
    shape: Sequence[int], state: Tensor, dtype: torch.dtype, kind: str, purpose: int, offset: int
) -> Tensor:
    result: Tensor
    if transformed():
        module = backends.load("reference", "noise")
        result = module.noise(state, tuple(shape), dtype, kind, purpose, offset)
        return result
    name = backends.select(state.device)
    result = torch.ops.vaefast.noise(state, list(shape), dtype, kind, purpose, offset, name)
    return result


def _signed(seed: int) -> int:
    """`seed` modulo 2^64 as int64 holds it."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _filled(seed: int, like: Tensor) -> Tensor:
    """`[seed, 0]`, filled on `like`'s device: a copy from the host would wait for a GPU, and is an
    error inside a captured graph."""
    if like.is_cpu:
        return torch.tensor([seed, 0], dtype=torch.int64, device=like.device)
    state = torch.full((2,), seed, dtype=torch.int64, device=like.device)
    state.select(0, 1).zero_()
    return state


def _sent(state: Tensor, device: torch.device) -> Tensor:
    """A state made on the host, without waiting for `device`; a graph cannot capture it."""
    return state.to(device, non_blocking=state.is_cpu)


def _checked_state(like: Tensor, batch: int, state: Tensor) -> Tensor:
    # Not by comparing tuples: under torch.jit.trace a size is a tensor, to an exporter a symbol.
    shape = state.shape
    fits = state.dim() in (1, 2) and shape[-1] == 2 and (state.dim() == 1 or shape[0] == batch)
    if state.dtype != torch.int64 or not fits:
        raise ValueError(
            f"seed as a Tensor must be an int64 state of shape [2] or [{batch}, 2], "
            f"got {state.dtype} {list(state.shape)}"
        )
    if state.device != like.device:
        raise ValueError(f"seed must be on device {like.device}, got {state.device}")
    return state.contiguous()


def _from_generator(like: Tensor, batch: int, generator: Generator) -> Tensor:
    if isinstance(generator, torch.Generator):
        return _sent(_draw(like, generator), like.device)
    if not isinstance(generator, Sequence) or not all(
        isinstance(g, torch.Generator) for g in generator
    ):
        raise TypeError(
            "generator must be a torch.Generator or a sequence of them, "
            f"got {type(generator).__name__}"
        )
    if len(generator) != batch:
        raise ValueError(
            f"generator as a sequence must have one per sample, {batch}, got {len(generator)}"
        )
    if batch == 0:
        return torch.zeros(0, 2, dtype=torch.int64, device=like.device)
    return torch.stack([_sent(_draw(like, g), like.device) for g in generator])
