"""What only a GPU shows: captured graphs, streams, waiting, launches, memory, many elements.

The numbers themselves are tested with every other backend's, in the operators' own files.
"""

import contextlib

import pytest
import torch
from test_benchmarks import load

import vaefast as vf

OPERATORS = load("operators").operators()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB = 1 << 20


@pytest.fixture(params=["native", "triton"])
def backend(request):
    if request.param not in vf.available_backends("cuda"):
        pytest.skip(f"{request.param} cannot serve cuda")
    with vf.backend(request.param):
        yield request.param


def posterior(*shape):
    generator = torch.Generator("cuda").manual_seed(1)
    made = [torch.randn(shape, device="cuda", generator=generator) for _ in range(2)]
    return [m.requires_grad_() for m in made]


def step(mu, logvar, x, seed=None, reduction="sample"):
    """An ELBO whose decoder is the identity, and its gradients."""
    z, kl = vf.sample_kl(mu, logvar, seed=seed, reduction=reduction)
    loss = vf.elbo_loss(z, x, kl=kl, likelihood="bernoulli").loss
    return [loss, *torch.autograd.grad(loss, (mu, logvar))]


def on_a_side_stream(function):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def test_a_captured_graph_gives_the_same_and_draws_anew(backend):
    mu, logvar = posterior(33, 1271)
    x = torch.rand(33, 1271, device="cuda")
    state = torch.tensor([3, 0], device="cuda")
    for seed in (state, 3, None):
        on_a_side_stream(lambda seed=seed: [step(mu, logvar, x, seed) for _ in range(3)])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(mu, logvar, x, seed)
        results = []
        for _ in range(2):
            graph.replay()
            results.append([c.clone() for c in captured])
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second) == (seed is not None)
        if seed is not None:
            for got, want in zip(results[0], step(mu, logvar, x, seed), strict=True):
                assert torch.equal(got, want)
            # The graph reads its inputs where they lie.
            with torch.no_grad():
                mu.mul_(0.5)
            graph.replay()
            for got, want in zip(captured, step(mu, logvar, x, seed), strict=True):
                assert torch.equal(got, want)


@contextlib.contextmanager
def no_waiting():
    """What waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_waits_raises():
    """Else the tests below would show nothing."""
    x = torch.ones(3, device="cuda")
    for waits in (lambda: x[0].item(), lambda: x[x > 0], lambda: torch.tensor([1], device="cuda")):
        with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
            waits()


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_no_operator_waits(backend, operator):
    inputs = operator.inputs("cuda", operator.dtype)
    operator.call(inputs)
    with no_waiting():
        operator.call(inputs)


@pytest.mark.parametrize("seed", [None, 3], ids=str)
def test_a_training_step_waits_for_nothing(backend, seed):
    mu, logvar = posterior(9, 1271)
    x = torch.rand(9, 1271, device="cuda")
    step(mu, logvar, x, seed)
    with no_waiting():
        step(mu, logvar, x, seed)


def test_seeds_of_every_kind_are_sent_without_waiting(backend):
    mu, logvar = posterior(9, 1271)
    for given in (
        {"seed": 3},
        {"seed": list(range(9))},
        {"generator": torch.Generator().manual_seed(1)},
        {"generator": torch.Generator("cuda").manual_seed(1)},
    ):
        vf.rsample(mu, logvar, **given)
        with no_waiting():
            vf.rsample(mu, logvar, **given)


def test_an_int_seed_is_the_same_state_everywhere():
    for seed in (0, 5, -1, 2**63, 2**64 - 1):
        on_gpu = vf.random.make_state(torch.zeros(1, device="cuda"), 1, seed)
        assert torch.equal(on_gpu.cpu(), vf.random.make_state(torch.zeros(1), 1, seed))


@pytest.mark.parametrize("seed", ["int", "state"])
def test_the_current_stream_is_the_one_that_runs(backend, seed):
    """Every kernel of the call, where nothing in it waits for the device."""
    mu, logvar = posterior(64, 20_000)
    given = 1 if seed == "int" else torch.tensor([1, 0], device="cuda")
    want = vf.rsample(mu, logvar, seed=given)
    torch.cuda.synchronize()

    def late():
        # Long enough that a kernel on another stream would read what is not there yet: a wait of
        # the call's own would hide that, and raises.
        torch.cuda._sleep(200_000_000)
        copies = [t.detach() * 1.0 for t in (mu, logvar)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = vf.rsample(*copies, seed=given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # The call returned while the device was still waiting.
        assert not torch.cuda.current_stream().query()
        return result

    assert torch.equal(on_a_side_stream(late), want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_current(backend):
    mu, logvar = (t.detach().to("cuda:1") for t in posterior(9, 1271))
    z = vf.rsample(mu, logvar, seed=1)
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(z.cpu(), vf.rsample(mu.cuda(0), logvar.cuda(0), seed=1).cpu())


def kernels(function):
    """How many kernels a call launches."""
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    events = profile.profiler.kineto_results.events()
    return sum(
        e.device_type() == torch.autograd.DeviceType.CUDA and not e.name().startswith("Mem")
        for e in events
    )


@pytest.mark.parametrize("shape", [(128, 20), (64, 3 * 256 * 256)], ids=str)
def test_launches(backend, shape):
    mu, logvar = posterior(*shape)
    x = torch.rand(shape, device="cuda")
    state = torch.tensor([3, 0], device="cuda")
    with torch.no_grad():
        assert kernels(lambda: vf.rsample(mu, logvar, seed=state)) == 1
        for reduction, most in (("sample", 2), ("batchmean", 2), ("none", 1), ("dim", 2)):
            call = lambda how=reduction: vf.sample_kl(mu, logvar, seed=state, reduction=how)  # noqa: E731
            assert kernels(call) <= most
        assert kernels(lambda: vf.nll(mu, x, "bernoulli")) <= 2
    loss = vf.nll(mu, x, "bernoulli")
    one = torch.ones((), device="cuda")
    assert kernels(lambda: torch.autograd.grad(loss, mu, one, retain_graph=True)) <= 3
    z, kl = vf.sample_kl(mu, logvar, seed=state)
    upstream = [torch.ones_like(z), torch.ones_like(kl)]
    grads = lambda: torch.autograd.grad([z, kl], (mu, logvar), upstream, retain_graph=True)  # noqa: E731
    assert kernels(grads) == 1


def peak(function):
    """The most bytes that a call has allocated at a time, what it returns included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = function()
    most = torch.cuda.max_memory_allocated() - before
    del kept
    return most


def test_memory_is_outputs_and_gradients(backend):
    mu, logvar = posterior(64, 3 * 128 * 128)
    pixels = torch.randint(0, 256, mu.shape, dtype=torch.uint8, device="cuda")
    size, small = mu.nbytes, 2 * MIB

    def sample():
        z, kl = vf.sample_kl(mu, logvar, seed=1)
        return z, kl, *torch.autograd.grad([z.sum() + kl.sum()], (mu, logvar))

    assert peak(sample) <= 3 * size + small
    assert peak(lambda: torch.autograd.grad(vf.nll(mu, pixels, "bernoulli"), mu)) <= size + small
    both = lambda: torch.autograd.grad(vf.nll((mu, logvar), pixels, "gaussian"), (mu, logvar))  # noqa: E731
    assert peak(both) <= 2 * size + small


def test_row_likelihoods_take_only_their_gradients(backend):
    """No launch that waits, and no memory of the logits' size beside the gradient."""
    logits = torch.randn(64, 10, 128, 128, device="cuda", requires_grad=True)
    classes = torch.randint(0, 10, (64, 128, 128), device="cuda")
    rows = torch.randn(512, 20_000, device="cuda", requires_grad=True)
    counts = torch.poisson(torch.full((512, 20_000), 0.01, device="cuda"))
    mixture = vf.DiscretizedLogisticMixture(3, 10)
    packed = torch.randn(8, mixture.size, 64, 64, device="cuda", requires_grad=True)
    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, device="cuda")
    for leaf, target, likelihood in (
        (logits, classes, "categorical"),
        (rows, counts, "multinomial"),
        (packed, pixels, mixture),
    ):
        call = lambda p=leaf, x=target, m=likelihood: torch.autograd.grad(vf.nll(p, x, m), p)  # noqa: E731
        call()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        positions = leaf.numel() // (leaf.shape[1])
        assert peak(call) <= leaf.nbytes + 16 * positions + 2 * MIB


def test_more_than_2_to_the_31_elements(backend):
    rows, cols = 3, (1 << 30) + 8
    if torch.cuda.mem_get_info()[0] < 32 << 30:
        pytest.skip("needs 32 GiB")
    logits = torch.zeros(rows, cols, device="cuda", dtype=torch.bfloat16)
    logits[-1, -4:] = 3.0
    z = vf.rsample(logits, logits, seed=5)
    tail = vf.rsample(logits[-1:, -8:], logits[-1:, -8:], seed=5, offset=rows * cols - 8)
    assert torch.equal(z[-1:, -8:], tail)
    del z
    loss = vf.nll(logits, torch.ones_like(logits), "bernoulli", reduction="sample")
    want = torch.full((rows,), cols * 0.6931471805599453, dtype=torch.float64)
    torch.testing.assert_close(loss.double().cpu(), want, rtol=1e-5, atol=0)


def row_likelihoods(logits, rows, packed):
    """Losses of the likelihoods with a class dimension, one or both of its places."""
    classes = torch.arange(33 * 17, device=logits.device).view(33, 17) % 10
    counts = torch.arange(rows.numel(), device=rows.device).view(rows.shape).to(rows.dtype) % 4
    pixels = torch.arange(5 * 3 * 77, device=packed.device).view(5, 3, 77) % 256
    mixture = vf.DiscretizedLogisticMixture()
    return (
        vf.nll(logits, classes, "categorical"),
        vf.nll(rows, classes.view(-1)[: len(rows)], "categorical"),
        vf.nll(rows, counts, "multinomial"),
        vf.nll(rows, counts.to_sparse_csr(), "multinomial"),
        vf.nll(packed, pixels.to(torch.uint8), mixture),
    )


# An operator of random leaves of these shapes.
WHOLE = {
    "row likelihoods": ([(33, 10, 17), (65, 1271), (5, 100, 77)], row_likelihoods),
    "tc_terms": ([(65, 9)] * 3, lambda *t: tuple(vf.tc_terms(*t, dataset_size=1000))),
    "mixture_log_prob": (
        [(65, 9), (33, 9), (33, 9), (33,)],
        lambda *t: (vf.mixture_log_prob(*t),),
    ),
    "mmd": ([(65, 9), (129, 9)], lambda x, y: (vf.mmd(x, y), vf.mmd(x, y, kernel="rbf"))),
    "monte_carlo_kl": (
        [(7, 65, 50), (65, 50), (65, 50), (50,), (50,)],
        lambda z, mu, scale, *prior: (vf.monte_carlo_kl(z, mu, scale, prior=prior),),
    ),
    "sample_monte_carlo_kl": (
        [(65, 50), (65, 50), (50,), (50,)],
        lambda mu, scale, prior_mu, prior_scale: vf.sample_kl(
            *(mu, scale),
            prior_mu=prior_mu,
            prior_scale=prior_scale,
            num_samples=7,
            seed=2,
            estimator="monte_carlo",
        ),
    ),
    "linear_nll": (
        [(65, 33), (1271, 33), (1271,)],
        lambda h, w, b: (vf.linear_nll(h, w, b, torch.ones_like(h @ w.T), "multinomial"),),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_against_the_reference_on_the_cpu(name, backend):
    shapes, function = WHOLE[name]
    generator = torch.Generator().manual_seed(1)
    doubles = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    results = []
    for device, dtype, serving in (("cpu", torch.float64, "reference"), ("cuda", None, backend)):
        leaves = [t.to(device, dtype or torch.float32).requires_grad_() for t in doubles]
        with vf.backend(serving):
            values = function(*leaves)
            sums = [v.sum() * (i + 1) for i, v in enumerate(values)]
            grads = torch.autograd.grad(torch.stack(sums).sum(), leaves)
        results.append([t.detach().cpu().double() for t in (*values, *grads)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
