"""Sparse matrices of every form, small and large: the same rows as the dense array has."""

import sys

import numpy as np
import pytest
import torch
from mapped import taken
from scipy import sparse as scipy_sparse

from vaefast.train import InputError, cache, sparse
from vaefast.train.data import check_target, load_samples

N, D = 41, 23


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Large: some values at a time, some rows sorted at a time, all in a mapped file."""
    if request.param == "large":
        monkeypatch.setattr(cache, "LIMIT", 100)
        monkeypatch.setattr(sparse, "_PART", 37)
        monkeypatch.setattr(sparse, "_SORTED", 1000)
    return request.param


def dense(dtype="float32"):
    values = np.random.default_rng(0).poisson(0.7, (N, D))
    # Rows and columns of nothing, the first and the last among them.
    values[[0, 7, 8, -1]] = 0
    values[:, [0, 5, -1]] = 0
    return values.astype(dtype)


def npz(path, matrix):
    scipy_sparse.save_npz(path, matrix)


def compressed_not(path, matrix):
    scipy_sparse.save_npz(path, matrix, compressed=False)


def h5ad(path, matrix):
    h5py = pytest.importorskip("h5py")
    if matrix.format not in ("csr", "csc"):
        pytest.skip("AnnData has two forms")
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["encoding-type"] = f"{matrix.format}_matrix"
        group.attrs["shape"] = matrix.shape
        for name in ("data", "indices", "indptr"):
            array = getattr(matrix, name)
            chunks = (min(1 << 16, 1 + len(array) // 3),)
            group.create_dataset(name, data=array, chunks=chunks)


WRITERS = {"x.npz": npz, "plain.npz": compressed_not, "x.h5ad": h5ad, "wide.h5ad": h5ad}
FORMS = ["csr", "csc", "coo", "bsr", "dia"]


def load(tmp_path, name, matrix):
    path = tmp_path / name
    WRITERS[name](path, matrix)
    return load_samples(path, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["x.npz", "plain.npz", "x.h5ad"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", "bool"])
def test_rows_are_those_of_the_dense_array(tmp_path, size, name, form, dtype):
    values = dense(dtype)
    samples = load(tmp_path, name, getattr(scipy_sparse, f"{form}_array")(values))
    kept = torch.uint8 if dtype == "uint8" else torch.bool if dtype == "bool" else torch.float32
    assert samples.shape == (D,)
    assert samples[:].dtype == kept
    assert torch.equal(samples[:], torch.from_numpy(values).to(kept))
    order = torch.tensor([40, 3, 3, 0, 8])
    assert torch.equal(samples.take(order), torch.from_numpy(values)[order].to(kept))
    assert samples.range() == (0.0, float(values.max()))
    if form in ("csc", "coo") and size == "large":
        # One file; what is mapped is not in memory.
        assert isinstance(samples.data.indices.base, np.memmap)
        assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_one_digest_whatever_the_size_the_file_and_the_indices(tmp_path, monkeypatch, form):
    matrix = getattr(scipy_sparse, f"{form}_matrix")(dense())
    found = {load(tmp_path, name, matrix).digest() for name in ("x.npz", "plain.npz")}
    for name in ("indices", "indptr", "row", "col"):
        if hasattr(matrix, name) and form != "coo":
            setattr(matrix, name, getattr(matrix, name).astype(np.int64))
    if form != "coo":
        found.add(load(tmp_path, "x.h5ad", matrix).digest())
    monkeypatch.setattr(cache, "LIMIT", 100)
    monkeypatch.setattr(sparse, "_SORTED", 500)
    found.add(load_samples(tmp_path / "x.npz", cache=tmp_path / "cache").digest())
    assert len(found) == 1


def test_what_comes_twice_is_added_up(tmp_path, size):
    rows, columns = np.array([3, 0, 3, 3, 0]), np.array([2, 1, 2, 0, 1])
    values = np.array([1.0, 2, 4, 8, 16], np.float32)
    samples = load(tmp_path, "x.npz", scipy_sparse.coo_matrix((values, (rows, columns)), (5, 4)))
    want = torch.zeros(5, 4)
    want[3, 2], want[0, 1], want[3, 0] = 5, 18, 8
    assert torch.equal(samples[:], want)
    assert samples.range() == (0.0, 18.0)


def test_a_matrix_of_nothing(tmp_path, size):
    for form in FORMS:
        matrix = getattr(scipy_sparse, f"{form}_matrix")((6, 3), dtype=np.float32)
        assert not load(tmp_path, "x.npz", matrix)[:].any()


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_bytes_are_pixels_or_bits_as_they_are_in_a_dense_file(tmp_path, size, form):
    make = getattr(scipy_sparse, f"{form}_matrix")
    pixels = (85 * dense("uint8").clip(0, 3)).astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    samples, same = load(tmp_path, "x.npz", make(pixels)), load_samples(tmp_path / "x.npy")
    assert samples[:].dtype == same[:].dtype == torch.uint8
    check_target(samples, "bernoulli")
    with pytest.raises(InputError, match="does not take the data's values, 0 to 255"):
        check_target(load(tmp_path, "x.npz", make(pixels.astype(np.int64))), "bernoulli")
    assert load(tmp_path, "x.npz", make((pixels > 0).astype(np.uint8)))[:].dtype == torch.bool


BROKEN = {
    "an index of no column": lambda parts: parts["indices"].__setitem__(3, D if N < D else N),
    "an index below 0": lambda parts: parts["indices"].__setitem__(0, -1),
    "indptr falls": lambda parts: parts["indptr"].__setitem__(5, 10**6),
    "indptr begins late": lambda parts: parts["indptr"].__setitem__(0, 1),
    "indptr ends late": lambda parts: parts["indptr"].__setitem__(-1, 10**6),
    "values are missing": lambda parts: parts.update(data=parts["data"][:-1]),
    "values are complex": lambda parts: parts.update(data=parts["data"] * 1j),
    "values are objects": lambda parts: parts.update(data=parts["data"].astype(object)),
    "indices are fractions": lambda parts: parts.update(indices=parts["indices"] + 0.5),
    "indices are missing": lambda parts: parts.pop("indices"),
    "indptr is missing": lambda parts: parts.pop("indptr"),
    "indptr is short": lambda parts: parts.update(indptr=parts["indptr"][:-1]),
    "no shape": lambda parts: parts.update(shape=np.array([], int)),
    "another form": lambda parts: parts.update(format=np.array(b"xyz")),
}


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_matrix_is_named(tmp_path, size, fault, form):
    """Not read beyond its ends: what makes rows dense looks at no bounds."""
    path = tmp_path / "x.npz"
    npz(path, getattr(scipy_sparse, f"{form}_matrix")(dense()))
    with np.load(path) as arrays:
        parts = {name: arrays[name].copy() for name in arrays}
    BROKEN[fault](parts)
    np.savez(path, **parts)
    with pytest.raises(InputError, match=r"x\.npz"):
        load_samples(path, cache=tmp_path / "cache")
    left = list((tmp_path / "cache").glob("*")) if form == "csc" else []
    assert not left


def test_a_broken_coordinate_is_named(tmp_path, size):
    path = tmp_path / "x.npz"
    npz(path, scipy_sparse.coo_matrix(dense()))
    with np.load(path) as arrays:
        parts = {name: arrays[name].copy() for name in arrays}
    for name, value in (("row", N), ("row", -1), ("col", D), ("data", None)):
        broken = {key: array.copy() for key, array in parts.items()}
        if value is None:
            broken["data"] = broken["data"][:-1]
        else:
            broken[name][3] = value
        np.savez(path, **broken)
        with pytest.raises(InputError, match=r"x\.npz could not be read"):
            load_samples(path, cache=tmp_path / "cache")
    np.savez(path, format=b"coo", shape=[4], coords=[[1]], data=[1.0])
    with pytest.raises(InputError, match=r"x\.npz must hold \[N, D\], got \[4\]"):
        load_samples(path, cache=tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.npz", "csc"),
        ("x.h5ad", "csc"),
        ("wide.h5ad", "csr"),
        ("wide.h5ad", "csc"),
        ("x.npz", "coo"),
    ],
)
def test_a_large_matrix_takes_little_memory(tmp_path, name, form):
    values = scipy_sparse.random(
        4000, 2000, 0.4, form, np.float32, np.random.default_rng(0), lambda n: np.ones(n, "f4")
    )
    for part in ("indices", "indptr") if name == "wide.h5ad" else ():
        setattr(values, part, getattr(values, part).astype(np.int64))
    WRITERS[name](tmp_path / name, values)
    small = "cache.LIMIT = sparse._SORTED = 1 << 20; sparse._PART = 1 << 15"
    bytes_taken = taken(tmp_path / name, tmp_path / "cache", values.shape, small)
    share = bytes_taken / ((12 if name == "wide.h5ad" else 8) * values.nnz)
    assert share < 0.5, share
