"""Files larger than what is held in memory: decoded once, a part at a time, and mapped."""

import gzip
import struct
import sys

import numpy as np
import pytest
import torch
from mapped import taken
from scipy import sparse

from vaefast.train import InputError, cache
from vaefast.train.data import Samples, load_samples

ROWS, COLUMNS = 300, 7


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 1000)
    # So that there are several blocks of each.
    monkeypatch.setattr(cache, "PART", 700)


def array(dtype="float32"):
    return np.random.default_rng(0).poisson(1.5, (ROWS, COLUMNS)).astype(dtype)


def csv(path):
    np.savetxt(path, array(), fmt="%g", delimiter=",", header="a,b,c,d,e,f,g", comments="")


def gzipped(path):
    csv(path.with_name("plain.csv"))
    path.write_bytes(gzip.compress(path.with_name("plain.csv").read_bytes()))


def idx(path, dtype=">f4", code=0x0D):
    head = struct.pack(">BBBBII", 0, 0, code, 2, ROWS, COLUMNS)
    path.write_bytes(gzip.compress(head + array(dtype).tobytes()))


def h5ad(**settings):
    def write(path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("X", data=array(), **settings)

    return write


def sparse_h5ad(path):
    h5py = pytest.importorskip("h5py")
    matrix = sparse.csr_matrix(array())
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", matrix.shape
        group.create_dataset("data", data=matrix.data, chunks=True, compression="gzip")
        group["indices"], group["indptr"] = matrix.indices, matrix.indptr


FORMATS = {
    "x.csv": csv,
    "x.csv.gz": gzipped,
    "packed.npz": lambda path: np.savez_compressed(path, x=array()),
    "plain.npz": lambda path: np.savez(path, x=array()),
    "sparse.npz": lambda path: sparse.save_npz(path, sparse.csr_matrix(array())),
    "columns.npz": lambda path: sparse.save_npz(path, sparse.csc_matrix(array())),
    "x-ubyte.gz": idx,
    "chunked.h5ad": h5ad(chunks=(64, 3), compression="gzip"),
    "plain.h5ad": h5ad(),
    "sparse.h5ad": sparse_h5ad,
    "x.pt": lambda path: torch.save(torch.from_numpy(array()), path),
    "wide.npy": lambda path: np.save(path, array("uint16")),
    "swapped.npy": lambda path: np.save(path, array(">f4")),
    "half.npy": lambda path: np.save(path, array("float16")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_mapped_is_what_is_read(tmp_path, name, monkeypatch):
    path = tmp_path / name
    FORMATS[name](path)
    said = []
    mapped = load_samples(path, cache=tmp_path / "cache", say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "LIMIT", 1 << 30)
        held = load_samples(path)
    assert torch.equal(mapped[:], torch.from_numpy(array()))
    assert torch.equal(mapped[:], held[:])
    assert mapped.digest() == held.digest()
    assert mapped.range() == held.range()
    assert mapped.shape == held.shape == (COLUMNS,)
    assert torch.equal(mapped.subset(torch.tensor([5, 2])).take(torch.tensor([1, 1])), held[[2, 2]])
    assert not said


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "packed.npz", "x-ubyte.gz", "chunked.h5ad"])
def test_a_file_is_decoded_once(tmp_path, name, monkeypatch):
    path, kept = tmp_path / name, tmp_path / "cache"
    FORMATS[name](path)
    load_samples(path, cache=kept)
    (file,) = kept.iterdir()
    before = file.stat().st_mtime_ns
    again = load_samples(path, cache=kept)
    assert torch.equal(again[:], torch.from_numpy(array()))
    assert [f.stat().st_mtime_ns for f in kept.iterdir()] == [before]
    # Another content under the same name.
    csv(path) if name == "x.csv" else FORMATS[name](path)
    load_samples(path, cache=kept)
    assert len(list(kept.iterdir())) == 2
    (tmp_path / "file").write_text("")
    said = []
    load_samples(path, cache=tmp_path / "file" / "cache", say=said.append)
    assert "cannot be written" in said[0]


def test_images_of_other_types_have_their_channels_first(tmp_path):
    for shape, want in (((50, 6, 5), (1, 6, 5)), ((50, 6, 5, 3), (3, 6, 5))):
        values = np.arange(np.prod(shape)).reshape(shape).astype(">i4")
        np.save(tmp_path / "x.npy", values)
        samples = load_samples(tmp_path / "x.npy", cache=tmp_path / "cache")
        assert isinstance(samples.data, np.ndarray)
        assert samples.shape == want
        wide = values[:, None] if len(shape) == 3 else np.moveaxis(values, 3, 1)
        assert torch.equal(samples[:], torch.from_numpy(wide.astype(np.float32)))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1,2,3\n", "line 302 has 3 columns, not 7"),
        ("1,2,3,4,5,6,x\n", "line 302 holds 'x'"),
        ("1,2,3,4,5,6,\n", "line 302 holds ''"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, text):
    path = tmp_path / "x.csv"
    csv(path)
    with path.open("a") as file:
        file.write(line)
    for folder in (None, tmp_path / "cache"):
        with pytest.raises(InputError, match=text):
            load_samples(path, cache=folder)
    assert not list((tmp_path / "cache").iterdir())


def test_broken_archives_are_named(tmp_path):
    for name in ("x-ubyte.gz", "x.csv.gz", "packed.npz"):
        FORMATS[name](tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        said = []
        with pytest.raises(InputError, match=name):
            load_samples(tmp_path / name, cache=tmp_path / "cache", say=said.append)
        assert not said


def test_rows_are_written_as_one_file(tmp_path):
    blocks = [np.full((count, 2), count, np.int32) for count in (3, 0, 123456)]
    cache.write_rows(tmp_path / "x.npy", iter(blocks))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.concatenate(blocks))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "name",
    [
        *("x.csv", "x.h5ad"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("x.npz", "x.gz", "x.npy")),
    ],
)
def test_a_large_file_takes_little_memory(tmp_path, name):
    values = np.random.default_rng(0).integers(0, 9, (4000, 2000)).astype(np.float32)
    path = tmp_path / name
    if name == "x.csv":
        values = values[:2000]
        path.write_text("\n".join(",".join(map(str, row)) for row in values.astype(int)))
    elif name == "x.npz":
        np.savez_compressed(path, values)
    elif name == "x.npy":
        np.save(path, values.astype(">f4"))
    elif name == "x.gz":
        head = struct.pack(">BBBBII", 0, 0, 0x0D, 2, *values.shape)
        path.write_bytes(gzip.compress(head + values.astype(">f4").tobytes(), 1))
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("X", data=values, chunks=(100, 2000), compression="lzf")
    bytes_taken = taken(path, tmp_path / "cache", values.shape, "cache.LIMIT = 1 << 20")
    # A batch and a block at a time.
    share = bytes_taken / values.nbytes
    assert share < 0.5, share


def test_samples_of_a_plain_array_are_float32():
    samples = Samples(np.arange(6, dtype=">i8").reshape(3, 2))
    assert samples[:].dtype == torch.float32
    assert samples.range() == (0.0, 5.0)
