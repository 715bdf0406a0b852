"""The noise: Philox against its published vectors, placement, distribution, states."""

import numpy as np
import pytest
import reference64
import scipy.stats
import torch
from tolerances import NORMAL, TABLE

import vaefast as vf
from vaefast.random import BINARIZE, LIKELIHOOD, POSTERIOR, make_state, normal, uniform

pytestmark = pytest.mark.every_isa

SEEDS = [0, 7, 2**31, 2**63 - 1, -1, -(2**63), 0x299F31D0A4093822]


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_tests_own_philox_gives_random123s_vectors(counter, key, want):
    """Known answers: kat_vectors of Random123 (Salmon et al. 2011)."""
    got = reference64.philox([np.array(c) for c in counter], key)
    assert [f"{int(w):08x}" for w in got] == want.split()


def words_of(u):
    """A float64 uniform is (word + 1) 2^-32 exactly."""
    return (u.cpu().double() * 2.0**32 - 1).to(torch.int64)


def test_the_first_known_answer(backend):
    state = torch.tensor([0, 0], device=backend.device)
    got = words_of(uniform((4,), state, dtype=torch.float64))
    assert [f"{w:08x}" for w in got.tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 7, 2**33 + 5, 2**35 + 2])
def test_words_bit_for_bit(backend, seed, offset):
    state = torch.tensor([seed, 0], device=backend.device)
    for purpose in (POSTERIOR, BINARIZE, LIKELIHOOD):
        got = uniform((3, 41), state, dtype=torch.float64, purpose=purpose, offset=offset)
        want = reference64.words(seed, offset, 123, purpose=purpose).astype(np.int64)
        assert torch.equal(words_of(got).flatten(), torch.from_numpy(want))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_uniforms_and_normals(backend, dtype):
    state = torch.tensor([123456789, 3], device=backend.device)
    single = dtype == torch.float32
    for count in (1, 2, 3, 5, 1271, 40_000):
        got = uniform((count,), state, dtype=dtype).cpu().double()
        want = torch.from_numpy(reference64.uniforms(123456789, 3, count, single=single))
        assert (got - want).abs().max() <= TABLE[dtype].store
        assert (got > 0).all()
        assert (got <= 1).all()
        got = normal((count,), state, dtype=dtype).cpu().double()
        want = torch.from_numpy(reference64.normals(123456789, 3, count, single=single))
        bound = NORMAL[dtype] * want.abs().clamp(min=1)
        assert ((got - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_noise_is_float32s_rounded(backend, dtype):
    state = torch.tensor([5, 0], device=backend.device)
    for make in (normal, uniform):
        assert torch.equal(make((9, 41), state, dtype=dtype), make((9, 41), state).to(dtype))


def test_normals_reach_beyond_what_24_bits_would_give(backend):
    """(word + 1) 2^-32 down to 2^-32: up to 6.66, where 24 bits stop at 5.77."""
    state = torch.tensor([8, 0], device=backend.device)
    u = uniform((1 << 20,), state)
    assert (u < 2.0**-18).any()
    fine = (u.double().cpu() * 2.0**32 - 1).abs()
    assert (fine[fine < 2**20] % 256 != 0).any()


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_distribution(backend, seed):
    count = 200_000
    state = torch.tensor([seed, 0], device=backend.device)
    x = normal((count,), state).cpu().double().numpy()
    # 4.5 standard errors of each moment.
    for moment, value, error in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((x**moment).mean() - value) < 4.5 * (error / count) ** 0.5
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-4
    u = uniform((count,), state).cpu().double().numpy()
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-4
    for lag in (1, 2, 3, 4):
        assert abs(np.mean(x[lag:] * x[:-lag])) < 4.5 / count**0.5
        assert abs(np.mean(x[lag:] ** 2 * x[:-lag] ** 2) - 1) < 4.5 * (8 / count) ** 0.5


def test_streams_are_independent(backend):
    count = 100_000
    streams = [
        normal((count,), torch.tensor([seed, 0], device=backend.device), purpose=purpose)
        for seed, purpose in [(0, 0), (1, 0), (2**32, 0), (0, 1), (0, 2)]
    ]
    mu = torch.zeros(count, device=backend.device)
    streams += [vf.rsample(mu, mu, num_samples=3, seed=0)[k] for k in (1, 2)]
    x = torch.stack(streams).cpu().double()
    correlation = (x @ x.T / count - torch.eye(len(x), dtype=torch.float64)).abs()
    correlation.fill_diagonal_(0)
    assert correlation.max() < 4.5 / count**0.5


@pytest.mark.parametrize("offset", [0, 1, 4, 10])
def test_offset_is_a_place_in_the_stream(backend, offset):
    state = torch.tensor([3, 0], device=backend.device)
    whole = normal((400,), state, dtype=torch.float64)
    part = normal((41,), state, dtype=torch.float64, offset=offset)
    torch.testing.assert_close(part, whole[offset : offset + 41], rtol=0, atol=1e-15)
    moved = torch.tensor([3, offset], device=backend.device)
    assert torch.equal(normal((41,), moved, dtype=torch.float64), part)


def test_one_state_per_sample(backend):
    states = torch.tensor([[3, 0], [4, 0], [3, 5]], device=backend.device)
    rows = normal((3, 2, 7), states, dtype=torch.float64)
    for row, state in zip(rows, states, strict=True):
        want = normal((2, 7), state.clone(), dtype=torch.float64)
        torch.testing.assert_close(row, want, rtol=0, atol=1e-15)


def test_empty_shapes(backend):
    for shape in [(0,), (0, 4), (4, 0)]:
        assert normal(shape, torch.tensor([3, 0], device=backend.device)).shape == shape
        states = torch.zeros(shape[0], 2, dtype=torch.int64, device=backend.device)
        assert uniform(shape, states).shape == shape


def test_backends_agree():
    """Words bit for bit, normals within a few ulp."""
    state = torch.tensor([11, 2])
    made = {}
    for name in vf.available_backends("cpu"):
        with vf.backend(name):
            made[name] = [
                uniform((1271,), state, dtype=torch.float64),
                uniform((1271,), state),
                normal((1271,), state),
            ]
    first = made.pop("reference")
    for other in made.values():
        assert torch.equal(other[0], first[0])
        assert torch.equal(other[1], first[1])
        torch.testing.assert_close(other[2], first[2], rtol=NORMAL[torch.float32], atol=1e-6)


def test_states_of_seeds():
    like = torch.zeros(3)
    assert make_state(like, 3, seed=5).tolist() == [5, 0]
    assert make_state(like, 3, seed=-1).tolist() == [-1, 0]
    assert make_state(like, 3, seed=2**64 - 1).tolist() == [-1, 0]
    assert make_state(like, 3, seed=[1, 2, 3]).tolist() == [[1, 0], [2, 0], [3, 0]]
    state = torch.tensor([4, 9])
    assert torch.equal(make_state(like, 3, seed=state), state)
    generator = torch.Generator().manual_seed(1)
    first, second = (make_state(like, 3, generator=generator) for _ in range(2))
    assert first[0] != second[0]
    assert first[0] >= 0
    again = make_state(like, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, first)
    torch.manual_seed(2)
    first = make_state(like, 3)
    torch.manual_seed(2)
    assert torch.equal(make_state(like, 3), first)
