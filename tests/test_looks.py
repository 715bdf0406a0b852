"""What was found for tensors of one look is found for those alone that pass the same checks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vaefast as vf
from vaefast import _torch
from vaefast._looks import LIMIT, Looks
from vaefast.ops import _plans

GONE = "has no memory"


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def within(block, question):
    """The answer inside of a block or a transform."""
    answers = []
    block(lambda *_: answers.append(question()))
    return answers[0]


def in_mode(run):
    with Passing():
        run()


def under_vmap(run):
    torch.func.vmap(lambda t: (run(), t)[1])(torch.zeros(2))


def under_grad(run):
    torch.func.grad(lambda t: (run(), t.sum())[1])(torch.zeros(2))


def in_trace(run):
    torch.jit.trace(lambda t: (run(), t + 1)[1], (torch.zeros(2),), check_trace=False)


def in_inference(run):
    with torch.inference_mode():
        run()


def test_this_torch_tells_looks():
    assert _torch._guards_tell_apart()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("block", [in_mode, under_vmap, under_grad, in_trace, in_inference])
def test_a_look_is_one_of_here_and_now(block):
    plain = torch.zeros(2, 3), torch.zeros(2, 3)
    looks_so = _torch.look_of(*plain)
    assert looks_so(*plain)
    assert not within(block, lambda: looks_so(*plain))


def test_there_are_few_of_a_kind():
    looks = Looks()
    for size in range(1, LIMIT + 3):
        looks.add("kind", (torch.zeros(size),), size)
    looks.add("absent", (torch.zeros(1), None), 1)
    assert [looks.find("kind", (torch.ones(size),)) for size in range(1, LIMIT + 3)] == [
        *range(1, LIMIT + 1),
        *(None, None),
    ]
    assert looks.find("absent", (torch.zeros(1), None)) is None


def test_guards_that_do_not_tell_are_not_asked(monkeypatch):
    """As those of a torch that takes the arguments in another sense."""

    class Guards:
        def __init__(self, *tensors, **static):
            self.check = lambda *_: True

    monkeypatch.setattr(_torch, "_guards", Guards)
    _torch._guards_tell_apart.cache_clear()
    try:
        assert not _torch.look_of(torch.zeros(2))(torch.zeros(2))
    finally:
        _torch._guards_tell_apart.cache_clear()


OPERATORS = {
    "gaussian_kl": lambda a, b: vf.gaussian_kl(a, b),
    "rsample": lambda a, b: vf.rsample(a, b, seed=1),
    "sample_kl": lambda a, b: vf.sample_kl(a, b, seed=1)[1],
    "nll": lambda a, b: vf.nll((a, b), torch.zeros(6, 4), "gaussian"),
    "categorical": lambda a, b: vf.nll(a, torch.zeros(6, dtype=torch.int64), "categorical"),
    "tc_terms": lambda a, b: vf.tc_terms(a, a, b, dataset_size=100),
    "mmd": lambda a, b: vf.mmd(a, b),
    "mixture_log_prob": lambda a, b: vf.mixture_log_prob(a, a, b),
}


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_storage_that_was_freed_is_an_error(name, calls):
    """Of the first call and of one whose plan is found; a pointer to nothing would be read."""
    _plans.kept.clear()
    other = torch.zeros(6, 4)
    for _ in range(calls):
        OPERATORS[name](torch.zeros(6, 4), other)
    freed = torch.zeros(6, 4)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=GONE):
        OPERATORS[name](freed, other)


@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize("name", ["gaussian_kl", "sample_kl"])
def test_so_is_one_that_was_freed_before_the_backward_pass(name, calls):
    _plans.kept.clear()
    for _ in range(calls):
        pair = [torch.zeros(6, 4, requires_grad=True) for _ in range(2)]
        OPERATORS[name](*pair).sum().backward()
    mu, scale = (torch.zeros(6, 4, requires_grad=True) for _ in range(2))
    loss = OPERATORS[name](mu, scale).sum()
    mu.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=GONE):
        loss.backward()


def test_each_backend_that_is_asked_for_has_looks_of_its_own():
    """Or the first one's would stand before the others'."""
    _plans.kept.clear()
    for _ in range(2):
        for backend in ("auto", "native"):
            with vf.backend(backend):
                vf.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    looks = [found for of_kind in _plans.kept.looks.values() for found in of_kind]
    assert len(looks) == len(_plans.kept) == 2


# The same numbers in other places.
CHANGES = {
    "transposed": lambda t: t.t().contiguous().t(),
    "sliced": lambda t: torch.stack([t, -t], 2)[..., 0],
    "negated": lambda t: torch._neg_view(-t),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["gaussian_kl", "rsample", "sample_kl"])
def test_what_was_saved_is_looked_at_anew(name, change):
    """Put in the place of a tensor past autograd's version counter."""
    found = {}
    for backend in ("auto", "reference"):
        with vf.backend(backend):
            for number in range(4):
                torch.manual_seed(number)
                pair = [torch.randn(5, 5).requires_grad_() for _ in range(2)]
                value = OPERATORS[name](*pair)
                if number == 3:
                    for leaf in pair:
                        leaf.data = CHANGES[change](leaf.detach())
                found[backend] = torch.autograd.grad(value.sum(), pair)
    torch.testing.assert_close(found["auto"], found["reference"])
