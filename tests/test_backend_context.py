"""`vaefast.backend`: whose calls a block governs, in threads, tasks and compiled functions."""

import asyncio
import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import vaefast as vf
from vaefast import backends

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="needs two backends"
)


def serving():
    return backends.select("cpu")


def graph_of(loss):
    """The names of the autograd nodes that `loss` stands on."""
    names, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        names.add(type(node).__name__)
        left += [next_ for next_, _ in node.next_functions if next_ is not None]
    return names


def is_native(loss):
    """The operators have a node of their own, the reference has PyTorch's."""
    return any("KlFunction" in name for name in graph_of(loss))


def kl(mu):
    return vf.gaussian_kl(mu, torch.zeros_like(mu))


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def test_a_block_is_its_threads_alone():
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other():
        with vf.backend("reference"):
            seen.append(serving())
            entered.set()
            leave.wait(30)
        seen.append(serving())

    thread = threading.Thread(target=other)
    with vf.backend("native"):
        thread.start()
        entered.wait(30)
        assert serving() == "native"
        assert is_native(kl(leaf(4, 3)))
        leave.set()
        thread.join()
        assert serving() == "native"
    assert seen == ["reference", "native"]


def test_overlapping_blocks_of_two_threads_leave_nothing_behind():
    first, second, third = threading.Event(), threading.Event(), threading.Event()

    def one():
        with vf.backend("reference"):
            first.set()
            second.wait(30)
        third.set()

    def two():
        first.wait(30)
        with vf.backend("native"):
            second.set()
            third.wait(30)

    before = serving()
    threads = [threading.Thread(target=target) for target in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert serving() == before
    assert backends.asked() is None


def test_overlapping_blocks_of_one_thread():
    first, second = vf.backend("reference"), vf.backend("native")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert serving() == "native"
    second.__exit__(None, None, None)
    assert backends.asked() is None


def test_a_block_is_its_tasks_alone():
    seen = {}

    async def task(name, turn, after):
        with vf.backend(name):
            turn.set()
            await after.wait()
            seen[name] = serving()
        return serving()

    async def main():
        a, b = asyncio.Event(), asyncio.Event()
        with vf.backend("reference"):
            return await asyncio.gather(task("native", a, b), task("auto", b, a))

    # A task begins with what its creator asked for.
    assert asyncio.run(main()) == ["reference", "reference"]
    assert seen == {"native": "native", "auto": "native"}
    assert backends.asked() is None


def test_one_object_nests_in_itself_and_serves_many_threads():
    ours = vf.backend("reference")
    with ours, vf.backend("native"), ours:
        assert serving() == "reference"
    assert backends.asked() is None
    seen = []

    def work():
        with ours:
            seen.append(serving())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["reference"] * 8


def test_decorators():
    @vf.backend("reference")
    def plain(x, *, y=1):
        """Says."""
        return serving(), x, y

    @vf.backend("reference")
    async def later():
        await asyncio.sleep(0)
        return serving()

    assert plain(2, y=3) == ("reference", 2, 3)
    assert (plain.__name__, plain.__doc__) == ("plain", "Says.")
    assert asyncio.run(later()) == "reference"
    assert backends.asked() is None

    def generator():
        yield

    with pytest.raises(TypeError, match="generator function"):
        vf.backend("reference")(generator)


def test_a_prepared_call_is_of_the_backend_that_is_asked_for():
    mu, logvar = leaf(4, 3), leaf(4, 3)
    for name in ("native", "reference", "native"):
        with vf.backend(name):
            for _ in range(3):
                assert is_native(vf.gaussian_kl(mu, logvar)) == (name == "native")


@pytest.mark.parametrize("shape", [(4, 3), (64, 40, 40)])
def test_backward_is_by_the_backend_of_forward(shape, monkeypatch):
    """In a thread of its own, under another backend."""
    x = torch.rand(shape)
    results = []
    for name in ("native", "reference"):
        mu, logvar = (torch.full(shape, 0.1).requires_grad_() for _ in range(2))
        with vf.backend(name):
            z, cost = vf.sample_kl(mu, logvar, seed=3)
            loss = vf.elbo_loss(z, x, kl=cost, likelihood="bernoulli").loss
        loads = []

        def load(*names, load=backends.load, loads=loads):
            loads.append(names[0])
            return load(*names)

        monkeypatch.setattr(backends, "load", load)

        def run(loss=loss, other={"native": "reference", "reference": "native"}[name]):
            with vf.backend(other):
                loss.backward()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        monkeypatch.undo()
        assert set(loads) <= {name}
        results.append((mu.grad, logvar.grad))
    torch.testing.assert_close(results[0], results[1])


def test_checkpoint_asks_for_what_its_contexts_say():
    mu = leaf(4, 3)
    seen = []

    def body(mu):
        seen.append(serving())
        return kl(mu)

    contexts = lambda: (vf.backend("reference"), vf.backend("reference"))  # noqa: E731
    loss = checkpoint(body, mu, use_reentrant=False, context_fn=contexts)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert seen == ["reference", "reference"]
    torch.testing.assert_close(mu.grad, mu.detach() / 4)


def compiled(function):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter), counter


def by(counter):
    """The backend whose operators the last graph calls."""
    called = (str(node.target) for node in counter.graphs[-1].graph.nodes)
    return "native" if any("vaefast" in target for target in called) else "reference"


@pytest.mark.parametrize("call", [kl, lambda mu: vf.nll(mu, torch.ones(4, 3), "gaussian"),
                                  lambda mu: vf.sample_kl(mu, mu, seed=1)[1].sum()])  # fmt: skip
def test_a_compiled_function_follows(call):
    function, counter = compiled(call)
    mu = torch.randn(4, 3)
    want = call(mu)
    with vf.backend("native"):
        torch.testing.assert_close(function(mu), want)
        assert (counter.frame_count, by(counter)) == (1, "native")
    with vf.backend("reference"):
        torch.testing.assert_close(function(mu), want)
        assert (counter.frame_count, by(counter)) == (2, "reference")
        for _ in range(3):
            function(mu)
    with vf.backend("native"):
        for _ in range(3):
            function(mu)
    assert counter.frame_count == 2


def test_a_compiled_function_follows_in_each_thread():
    function, counter = compiled(kl)
    mu = torch.randn(4, 3)
    with vf.backend("reference"):
        function(mu)
        assert by(counter) == "reference"
        # A new thread has not been asked for anything.
        thread = threading.Thread(target=function, args=(mu,))
        thread.start()
        thread.join()
        assert (counter.frame_count, by(counter)) == (2, "native")
        function(mu)
    assert counter.frame_count == 2


def test_a_compiled_module_follows():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kl = vf.nn.GaussianKL()

        def forward(self, mu):
            return self.kl(mu, torch.zeros_like(mu))

    function, counter = compiled(Model())
    mu = torch.randn(4, 3)
    for name in ("native", "reference", "native", "reference"):
        with vf.backend(name):
            for _ in range(4):
                function(mu)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", ["native", "reference", "auto"])
def test_a_block_within_a_compiled_function(name):
    def body(mu):
        with vf.backend(name):
            inner = kl(mu)
        return inner + kl(mu)

    decorated = vf.backend(name)(kl)

    def by_decorator(mu):
        with vf.backend("reference"):
            return decorated(mu) + kl(mu)

    mu = torch.randn(4, 3)
    for each in (body, by_decorator):
        function, counter = compiled(each)
        with vf.backend("reference"):
            torch.testing.assert_close(function(mu), 2 * kl(mu))
            assert by(counter) == ("reference" if name == "reference" else "native")
            assert serving() == "reference"
        assert backends.asked() is None


def test_a_compiled_function_refuses_a_backend_that_cannot_serve():
    function, _ = compiled(lambda mu: vf.nll(mu, torch.zeros(4, 3), "bernoulli"))
    mu = torch.randn(4, 3)
    function(mu)
    refused = "backend 'triton' was asked for but cannot"
    with pytest.raises(Exception, match=refused), vf.backend("triton"):
        function(mu)
    function(mu)
