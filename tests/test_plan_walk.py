"""Every operator under every setting, by a plan that is made and by one that is found: the same
bits; and none goes the slow path again but for a reason that is listed here."""

import pytest
import torch
from test_hooked_tensors import CASES, outputs_of

import vaefast as vf
from vaefast import _explain
from vaefast.ops import _plans

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference makes no plans"
)

# Why an operator that has plans may be served without one, at each call anew.
DECLINED = (
    "the fast path does not take capacity of elbo_loss",
    "the fast path does not take z_flow",
    "the fast path does not take a likelihood",
    "the fast path takes operands of one shape",
    "the fast path takes one learned number",
    "a gradient is asked for to what kernels take as constant",
)


@pytest.fixture(autouse=True)
def no_plans(monkeypatch):
    monkeypatch.setattr(_plans, "kept", _plans.Kept())
    torch.manual_seed(0)
    with vf.backend("native"):
        yield


def everything(call, leaves):
    outputs = outputs_of(call)
    torch.manual_seed(4)
    upstream = [torch.randn_like(o) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)]


@pytest.mark.parametrize(("of", "case"), CASES)
def test_found_or_made_the_same_bits(of, case):
    """And no setting is left out."""
    call, leaves = of(case)
    made = everything(call, leaves)
    count = len(_plans.kept)
    found = everything(call, leaves)
    assert len(_plans.kept) == count, "a call like one before makes no further plan"
    for a, b in zip(made, found, strict=True):
        assert a is b is None or torch.equal(a, b)
    with torch.no_grad():
        torch.manual_seed(3)
        quiet = call()
        torch.manual_seed(3)
        for a, b in zip(call(), quiet, strict=True):
            assert torch.equal(a, b)
    for part in vf.explain(lambda: outputs_of(call)).calls:
        if part.operator not in _explain.UNPLANNED and not part.fast:
            assert any(r.startswith(DECLINED) for r in part.reasons), part


def test_settings_that_differ_share_no_plan():
    """Those that the shapes do not show."""
    mu, logvar = torch.randn(5, 3), torch.randn(5, 3)
    results = {}
    for _ in range(2):
        for settings in (
            {},
            {"num_samples": 1},
            {"num_samples": 2},
            {"free_bits": 1.0},
            {"free_bits": 2.0},
            {"mask": mu > 0},
            {"weight": logvar},
            {"prior_mu": logvar},
            {"prior_scale": logvar},
            {"noise": logvar},
        ):
            given = settings if "noise" in settings else {"seed": 1, **settings}
            got = vf.sample_kl(mu, logvar, **given)
            want = results.setdefault(str(settings), got)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    kls = [tuple(kl.flatten().tolist()) for _, kl in results.values()]
    assert len(set(kls)) == len(kls) - 3, "num_samples and noise have the standard one's KL"
