"""A call that is compiled ahead of time, and what it is made of."""

from typing import Any, NamedTuple

import torch

F64, F32, BF16, F16, U8 = torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8
I64 = torch.int64
LATENT, IMAGE = (256, 4, 64, 64), (64, 3, 64, 64)
# Memory that nobody reads: the calls are only compiled.
STATE = torch.empty(2, dtype=torch.int64)


class Call(NamedTuple):
    """A call; `kernels` it launches; `bytes` it must move per element, 0 where arithmetic is what
    it takes, its tiles coming from the caches; `loads` that are 16 wide."""

    name: str
    run: Any
    kernels: int
    bytes: float
    loads: int
    everywhere: bool = False

    def __str__(self):
        return self.name


def empty(*shape, dtype=F32):
    return torch.empty(shape, dtype=dtype)
