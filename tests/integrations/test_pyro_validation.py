"""What FusedNormal refuses, Pyro's Normal refuses, in the same words, and asks as little."""

import re

import pytest
import torch

pytest.importorskip("pyro", reason="needs pyro-ppl: pip install '.[integrations]'")

import pyro.distributions as dist
from torch.distributions import constraints

from vaefast.integrations.pyro import FusedNormal

WRONG = {
    "no number": torch.full((3, 4), torch.nan),
    "one no number": torch.tensor([[0.0, 1.0, 2.0, torch.nan]]).expand(3, 4),
    "another width": torch.zeros(3, 5),
    "another batch": torch.zeros(2, 4),
    "no tensor": 1.0,
}


def pair(events, validate=True):
    loc, scale = torch.randn(3, 4), torch.rand(3, 4) + 0.5
    return [
        k(loc, scale, validate_args=validate).to_event(events) for k in (FusedNormal, dist.Normal)
    ]


@pytest.mark.parametrize("events", [0, 1, 2])
@pytest.mark.parametrize("what", WRONG)
def test_the_same_is_refused_in_the_same_words(what, events):
    ours, theirs = pair(events)
    with pytest.raises(ValueError) as wanted:
        theirs.log_prob(WRONG[what])
    wanted = re.sub(r"\bNormal\b", "FusedNormal", str(wanted.value))
    with pytest.raises(ValueError) as found:
        ours.log_prob(WRONG[what])
    assert str(found.value) == wanted


def test_nothing_is_asked_of_whole_events(monkeypatch):
    """Which takes as long as the density of a hundred of them."""
    asked = []
    check = constraints.independent.check
    monkeypatch.setattr(constraints.independent, "check", lambda *a: asked.append(1) or check(*a))
    ours, theirs = pair(1)
    z = ours()
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    assert not asked


def test_without_validation_what_is_no_number_is_none():
    ours, theirs = pair(1, validate=False)
    wrong = WRONG["one no number"]
    torch.testing.assert_close(ours.log_prob(wrong), theirs.log_prob(wrong), equal_nan=True)
