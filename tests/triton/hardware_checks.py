"""The special-function unit's instructions, to what the PTX manual says of them: in the interpreter
as wrong as that, on a GPU no more.

test_interpreter.py runs this file as it does kernel_checks.py; test_gpu.py takes its tests over.
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import INTERPRETED, device  # noqa: F401

from vaefast.backends.triton import _hardware, _math

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
COUNT = 4096
# By name what it is, between which powers of two of its argument, and its relative error.
UNITS = {
    "exp2": (torch.exp2, (-6, 6), 2.0**-22),
    "log2": (torch.log2, (-120, 120), 2.0**-22),
    "rcp": (torch.reciprocal, (-120, 120), 2.0**-23),
    "sqrt": (torch.sqrt, (-120, 120), 2.0**-23),
}


@triton.jit
def _apply(out, x, WHICH: tl.constexpr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    v = tl.load(x + place)
    if WHICH == "exp2":
        v = _hardware.exp2(v)
    elif WHICH == "log2":
        v = _hardware.log2(v)
    elif WHICH == "rcp":
        v = _hardware.rcp(v)
    elif WHICH == "sqrt":
        v = _hardware.sqrt(v)
    elif WHICH == "exp":
        v = _math.exp(v)
    elif WHICH == "exp_close":
        v = _math.exp_close(v)
    else:
        v, _ = _math.one_minus_exp(v)
    tl.store(out + place, v)


def _applied(name, x, device):  # noqa: F811
    x = x.float().to(device)
    count = triton.next_power_of_2(len(x))
    padded = torch.nn.functional.pad(x, (0, count - len(x)), value=1.0)
    out = torch.empty_like(padded)
    _apply[(1,)](out, padded, WHICH=name, COUNT=count)
    return out[: len(x)].cpu().double()


@pytest.mark.parametrize("name", UNITS)
def test_its_error_is_the_manuals(device, name):  # noqa: F811
    exact, (low, high), bound = UNITS[name]
    generator = torch.Generator().manual_seed(0)
    x = 2.0 ** (low + (high - low) * torch.rand(COUNT, generator=generator, dtype=torch.float64))
    x = x.float().double()
    if name == "exp2":
        x = x * torch.where(torch.arange(COUNT) % 2 == 0, 1.0, -1.0)
    want = exact(x)
    size = want.abs()
    if name == "log2":
        size = torch.where((x > 0.5) & (x < 2.0), torch.ones_like(size), size)
    error = (_applied(name, x, device) - want) / size
    # In the interpreter the exact result and the moved one are rounded beside.
    assert error.abs().max() <= bound + 2.0**-23 * INTERPRETED
    if INTERPRETED:
        # At its worst, and to either side.
        assert error.abs().mean() >= 0.9 * bound
        assert 0.3 < (error > 0).double().mean() < 0.7


@pytest.mark.parametrize(
    ("name", "x", "want"),
    [
        ("exp2", 0.0, 1.0),
        ("exp2", -math.inf, 0.0),
        ("exp2", math.inf, math.inf),
        ("exp2", -127.0, 0.0),
        ("log2", 0.0, -math.inf),
        ("log2", 1e-40, -math.inf),
        ("log2", math.inf, math.inf),
        ("log2", -1.0, math.nan),
        ("rcp", math.inf, 0.0),
        ("rcp", 0.0, math.inf),
        ("rcp", 1e-40, math.inf),
        ("rcp", 3e38, 0.0),
        ("sqrt", 0.0, 0.0),
        ("sqrt", math.inf, math.inf),
        ("exp", 1e30, math.inf),
        ("exp", -math.inf, 0.0),
        ("exp_close", 1e30, math.inf),
        ("exp_close", -math.inf, 0.0),
        ("one_minus_exp", 0.0, 0.0),
        ("one_minus_exp", 3e38, 1.0),
        *((name, math.nan, math.nan) for name in (*UNITS, "exp", "exp_close", "one_minus_exp")),
    ],
)
def test_ends(device, name, x, want):  # noqa: F811
    got = _applied(name, torch.tensor([x]), device)
    torch.testing.assert_close(got, torch.tensor([want]).double(), rtol=0, atol=0, equal_nan=True)


def test_an_exponential_is_right_at_any_argument(device):  # noqa: F811
    x = torch.linspace(-86.0, 88.7, COUNT).double()
    want = torch.exp(x.float().double())
    error = ((_applied("exp", x, device) - want) / want).abs().max()
    # The unit's, and three roundings.
    assert error <= 2.0**-22 + 3 * 2.0**-24
    error = ((_applied("exp_close", x, device) - want) / want).abs().max()
    assert error <= 2.0**-23


def test_what_an_exponential_leaves_of_1(device):  # noqa: F811
    x = 2.0 ** torch.linspace(-100, 6, COUNT).double()
    want = -torch.expm1(-x.float().double())
    error = ((_applied("one_minus_exp", x, device) - want) / want).abs().max()
    # From 0.35 on the unit's error is that of a number up to 2.4 times as large.
    assert error <= 7e-7
