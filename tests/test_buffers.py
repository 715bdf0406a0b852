"""Large results: their memory is kept for the next one, and they are written past the caches."""

import gc
import threading

import pytest
import torch

import vaefast as vf
from vaefast import _torch

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference leaves memory to torch"
)


@pytest.fixture
def buffers():
    from vaefast.backends.native._buffers import buffers

    before, buffers.limit = buffers.limit, 256 * MIB
    buffers.clear()
    yield buffers
    buffers.clear()
    buffers.limit = before


def sample(rows=1024, seed=1):
    mu = torch.zeros(rows, 1024 + 1)
    return vf.rsample(mu, mu, seed=seed)


def test_memory_is_taken_again_when_the_last_tensor_on_it_is_gone(buffers):
    z = sample()
    held, idle = buffers.bytes()
    assert held == z.nbytes and idle == 0
    where = z.data_ptr()
    view = z[3:]
    del z
    assert buffers.bytes() == (held, 0)
    del view
    assert buffers.bytes() == (held, held)
    again = sample()
    assert again.data_ptr() == where and buffers.bytes() == (held, 0)


def test_what_is_kept_is_bounded(buffers):
    buffers.limit = 10 * MIB
    results = [sample() for _ in range(4)]
    del results
    gc.collect()
    assert 0 < buffers.bytes()[1] <= buffers.bytes()[0] <= 10 * MIB
    buffers.clear()
    buffers.limit = 0
    z = sample()
    assert buffers.bytes() == (0, 0)
    assert torch.isfinite(z).all()


def test_what_is_not_taken_again_is_freed(buffers):
    del_me = sample(rows=3000)
    del del_me
    kept = buffers.bytes()[1]
    for _ in range(80):
        sample()
    assert 0 < buffers.bytes()[1] < kept


def test_a_kept_result_is_not_written_over(buffers):
    first = sample(seed=1)
    copy = first.clone()
    others = [sample(seed=seed) for seed in range(2, 6)]
    assert torch.equal(first, copy)
    assert len({t.data_ptr() for t in (first, *others)}) == 5


def test_no_more_is_taken_than_is_returned(buffers):
    mu, logvar = (torch.zeros(1024, 1025, requires_grad=True) for _ in range(2))
    z, kl = vf.sample_kl(mu, logvar)
    results = [z, kl, *torch.autograd.grad((z.sum() + kl.sum()), (mu, logvar))]
    assert len(results) == 4
    # z and two gradients.
    assert buffers.bytes()[0] <= 3 * z.nbytes


def test_threads_may_free_what_others_took(buffers):
    results = [sample() for _ in range(8)]
    threads = [threading.Thread(target=results.clear) for _ in range(2)]
    makers = [threading.Thread(target=lambda: [sample() for _ in range(5)]) for _ in range(2)]
    for thread in threads + makers:
        thread.start()
    for thread in threads + makers:
        thread.join()
    gc.collect()
    held, idle = buffers.bytes()
    assert held == idle > 0


def test_a_large_result_can_be_resized(buffers):
    """Grown, its memory is another; shrunk, it is still its own."""
    grown, shrunk = sample(seed=1), sample(seed=2)
    copy = shrunk[:10].clone()
    grown.resize_(3000, 1025).fill_(1.0)
    shrunk.resize_(10, 1025)
    later = [sample(seed=seed) for seed in range(3, 6)]
    assert torch.equal(shrunk, copy) and (grown == 1.0).all()
    expected = vf.rsample(torch.zeros(4, 1025), torch.zeros(4, 1025), seed=5)
    assert torch.equal(later[-1][:4], expected)


def test_shared_memory_is_not_taken_again(buffers):
    """Another process may hold it when the last tensor here is gone."""
    z = sample(seed=1).share_memory_()
    held = z.untyped_storage().data_ptr()
    del z
    assert sample(seed=2).data_ptr() != held


def test_without_torchs_count_of_references_nothing_is_kept(buffers, monkeypatch):
    monkeypatch.setattr(_torch, "storage_use_count", None)
    assert torch.isfinite(sample()).all() and not buffers._held


def test_a_storage_that_is_held_without_a_tensor_is_not_written_over(buffers):
    z = sample(seed=1)
    copy, storage = z.clone(), z.untyped_storage()
    del z
    sample(seed=2)
    assert torch.equal(torch.tensor([]).set_(storage), copy.flatten())
    del storage
    assert buffers.bytes()[0] == buffers.bytes()[1] > 0


def test_memory_is_taken_again_in_and_after_inference_mode(buffers):
    """In another shape and dtype too; what is taken after it is no tensor of inference."""
    mu = torch.zeros(1024, 1025, requires_grad=True)
    with torch.inference_mode():
        z = vf.rsample(mu, mu)
        where = z.data_ptr()
        assert z.is_inference()
        del z
    for shape, dtype in (((1024, 1025), torch.float32), ((2050, 256), torch.float64)):
        z = vf.rsample(*[torch.ones(shape, dtype=dtype, requires_grad=True)] * 2, seed=1)
        assert z.data_ptr() == where and not z.is_inference()
        assert z.shape == shape and z.dtype == dtype
        z.square().sum().backward()
        del z
    with torch.inference_mode():
        again = vf.rsample(mu, mu)
        assert again.is_inference() and again.data_ptr() == where


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "sample", "dim", "batchmean"])
def test_large_results_are_the_small_ones(kernels, dtype, reduction):
    """Beyond the size from which results are streamed, at rows that no cache line divides."""
    rows, cols = 9, 300_007 if dtype != torch.float64 else 70_001
    generator = torch.Generator().manual_seed(0)
    mu, logvar = (
        torch.randn(rows, cols, generator=generator).to(dtype).to(kernels.device).requires_grad_()
        for _ in range(2)
    )
    z, kl = vf.sample_kl(mu, logvar, reduction=reduction, seed=4)
    upstream = torch.full_like(z, 0.5), torch.full_like(kl, 0.25)
    grads = torch.autograd.grad((z, kl), (mu, logvar), upstream)
    for row in range(0, rows, 4):
        offset = row * cols
        part = [t[row : row + 1].detach().requires_grad_() for t in (mu, logvar)]
        small, _ = vf.sample_kl(*part, reduction="none", seed=4, offset=offset)
        assert torch.equal(small, z[row : row + 1])
        if reduction in ("none", "sample"):
            _, kl_part = vf.sample_kl(*part, reduction=reduction, seed=4, offset=offset)
            assert torch.equal(kl_part, kl[row : row + 1])
            got = torch.autograd.grad(
                vf.sample_kl(*part, reduction=reduction, seed=4, offset=offset),
                part,
                (upstream[0][row : row + 1], upstream[1][row : row + 1]),
            )
            for one, whole in zip(got, grads, strict=True):
                assert torch.equal(one, whole[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_large_gradients_are_the_small_ones(kernels, dtype, likelihood):
    rows, cols = 9, 300_007
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, cols, generator=generator).to(kernels.device)
    params = torch.randn(rows, cols, generator=generator).to(dtype).to(kernels.device)
    mask = torch.rand(rows, cols, generator=generator).to(kernels.device) < 0.5
    for keep in (None, mask):
        leaf = params.clone().requires_grad_()
        loss = vf.nll(leaf, x, likelihood, reduction="sample", mask=keep)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        for row in (0, 5, 8):
            part = params[row : row + 1].clone().requires_grad_()
            only = None if keep is None else keep[row : row + 1]
            alone = vf.nll(part, x[row : row + 1], likelihood, reduction="sample", mask=only)
            (small,) = torch.autograd.grad(alone.sum(), part)
            assert torch.equal(alone, loss[row : row + 1].detach())
            assert torch.equal(small, grad[row : row + 1])


def test_such_a_tensor_is_a_tensor(buffers, tmp_path):
    z = sample()
    torch.save(z, tmp_path / "z.pt")
    assert torch.equal(torch.load(tmp_path / "z.pt"), z)
    assert torch.equal(z.clone().share_memory_(), z)
    shared = z.share_memory_()
    assert shared.is_shared() and torch.isfinite(shared).all()
    assert torch.from_numpy(sample().numpy()).shape == z.shape
