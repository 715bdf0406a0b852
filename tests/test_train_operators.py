"""The operators that the demo times are what they are timed against."""

import pytest
import torch

from vaefast.train import operators


@pytest.mark.parametrize("name", ["_tc", "_zinb", "_mixture"])
def test_both_ways_give_one_loss_and_one_gradient(name):
    torch.manual_seed(0)
    case = getattr(operators, name)(torch.device("cpu"))
    fused, eager = case.fused(), case.eager()
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-4)
    for a, b in zip(
        torch.autograd.grad(fused, case.leaves),
        torch.autograd.grad(eager, case.leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_times_are_of_every_case():
    state = torch.get_rng_state()
    found = operators.time_operators(torch.device("cpu"), seconds=0.0)
    assert len(found) == 3
    assert all(seconds > 0 for timing in found.values() for seconds in timing)
    assert torch.equal(state, torch.get_rng_state())
