"""grid_of: that a grid of rows and columns visits every element of every operand, in order."""

import math
import random

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaefast.backends.layout import grid_of


def walk(grid, view):
    """The values that a kernel would read, row by row."""
    rows = torch.arange(grid.rows).reshape(-1, 1)
    cols = torch.arange(grid.cols).reshape(1, -1)
    place = (rows // view.div) % view.mod * view.row_stride + cols * view.col_stride
    t = view.tensor
    storage = torch.as_strided(t, (t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return storage[t.storage_offset() + place]


def check(shape, lead, operands):
    grid = grid_of(shape, lead, operands)
    samples = math.prod(shape[:lead])
    assert grid.rows * grid.cols == math.prod(shape)
    # A sample of no elements has its row all the same: its sum, 0, must be written.
    assert grid.segments >= 1
    assert grid.rows == samples * grid.segments
    for operand, view in zip(operands, grid.views, strict=True):
        if operand is None:
            assert view is None
            continue
        # Kernels vectorise over a stride of 0 or 1.
        assert view.col_stride in (0, 1) or grid.cols <= 1
        want = operand.expand(shape).reshape(grid.rows, grid.cols)
        if want.numel():
            assert torch.equal(walk(grid, view), want)
    return grid


def numbered(shape):
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_any_operands_of_any_layout(seed):
    rng = random.Random(seed)
    shape = tuple(rng.choice([1, 2, 3, 5]) for _ in range(rng.randint(1, 5)))
    lead = rng.choice([1, 2]) if len(shape) > 1 else 1
    operands = [None if rng.random() < 0.2 else any_operand(shape, rng) for _ in range(4)]
    check(shape, lead, operands)


def any_operand(shape, rng):
    part = cases.broadcasts(shape, rng)
    order = list(range(len(part)))
    rng.shuffle(order)
    t = numbered([part[i] for i in order])
    inverse = sorted(range(len(order)), key=order.__getitem__)
    t = t.permute(inverse)
    return (
        t[..., ::2].repeat_interleave(2, -1)[..., : t.shape[-1]]
        if rng.random() < 0.1 and part
        else t
    )


@pytest.mark.parametrize("layout", list(cases.LAYOUTS))
@pytest.mark.parametrize("shape", cases.SHAPES)
@pytest.mark.parametrize("lead", [1, 2])
def test_layouts(shape, layout, lead):
    operand = cases.LAYOUTS[layout](numbered(shape)).resolve_neg()
    check(shape, min(lead, len(shape)), [operand, numbered(shape), None])


def test_common_layouts_are_not_copied():
    """The posterior as halves of one linear layer, a weight per sample, a prior per dimension."""
    whole = numbered((6, 8))
    mu, logvar = whole.chunk(2, 1)
    prior, weight = numbered((4,)), numbered((6, 1))
    grid = check((6, 4), 1, [mu, logvar, prior, weight])
    for operand, view in zip([mu, logvar, prior, weight], grid.views, strict=True):
        assert view.tensor.data_ptr() == operand.data_ptr()
    assert (grid.rows, grid.cols, grid.segments) == (6, 4, 1)

    target, logits = numbered((6, 4)), numbered((3, 6, 4))
    grid = check((3, 6, 4), 2, [logits, target])
    assert grid.views[1].tensor is target

    image = numbered((2, 8, 5, 7))
    mu, logvar = image.chunk(2, 1)
    grid = check((2, 4, 5, 7), 1, [mu, logvar])
    assert (grid.rows, grid.cols) == (2, 140)
    assert grid.views[1].tensor.data_ptr() == logvar.data_ptr()


def test_an_expanded_upstream_is_not_copied():
    upstream = torch.ones(()).expand(6, 4)
    grid = check((6, 4), 1, [numbered((6, 4)), upstream])
    assert grid.views[1].tensor.data_ptr() == upstream.data_ptr()
