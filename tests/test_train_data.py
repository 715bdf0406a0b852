"""Every format that `vaefast train` reads, what it makes of it, and what it says of broken ones."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse

from vaefast.train import InputError
from vaefast.train.data import Samples, check_target, load_array, load_samples
from vaefast.train.images import ImageOptions, load_folder


def idx(array):
    code = {"uint8": 0x08, ">i4": 0x0C, ">f4": 0x0D}
    kind = code.get(array.dtype.name) or code[array.dtype.str]
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    )


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", ">i4", ">f4"])
def test_idx_files(tmp_path, dtype, zipped):
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    path = tmp_path / ("images-idx3-ubyte" + (".gz" if zipped else ""))
    content = idx(array)
    path.write_bytes(gzip.compress(content) if zipped else content)
    got = load_array(path)
    assert got.shape == (4, 1, 3, 2)
    assert got.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert got.flatten().tolist() == list(range(24))
    path.write_bytes(gzip.compress(content[:-3]) if zipped else content[:-3])
    with pytest.raises(InputError, match=r"bytes of data, \d+ announced"):
        load_array(path)
    path.write_bytes(gzip.compress(content)[:-9] if zipped else content[:7])
    with pytest.raises(InputError, match=r"could not be read|must be \.npy"):
        load_array(path)


def test_sparse_matrices_are_made_dense_by_the_batch(tmp_path):
    dense = np.random.default_rng(0).poisson(0.3, (9, 7))
    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix):
        sparse.save_npz(tmp_path / "x.npz", kind(dense))
        samples = load_samples(tmp_path / "x.npz")
        assert not isinstance(samples.data, torch.Tensor)
        assert samples.shape == (7,)
        rows = torch.tensor([5, 0, 5])
        assert samples.take(rows).tolist() == dense[rows].tolist()
        assert samples.range() == (0.0, float(dense.max()))
        assert samples.subset(torch.tensor([8, 2])).take(torch.tensor([1])).tolist() == [
            dense[2].tolist()
        ]
    same = {Samples(kind(dense)).digest() for kind in (sparse.csr_matrix, sparse.csr_matrix)}
    assert len(same) == 1


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("a.csv", "1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("a.csv", "width,height\n1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("a.csv", '"the width";"h"\r\n1;2\r\n3;4e1\r\n', [[1, 2], [3, 40]]),
        ("a.tsv", "a\tb\n1\t-2\n", [[1, -2]]),
        ("a.csv", "x\n1\n2\n", [[1], [2]]),
    ],
)
def test_tables(tmp_path, name, text, want):
    (tmp_path / name).write_bytes(text.encode())
    assert load_array(tmp_path / name).tolist() == want
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress(text.encode()))
    assert load_array(zipped).tolist() == want


def test_binary_bytes_are_seen_as_such(tmp_path):
    for array, dtype in (
        (np.eye(4, dtype=np.uint8), torch.bool),
        (2 * np.eye(4, dtype=np.uint8), torch.uint8),
        (np.eye(4, dtype=np.bool_), torch.bool),
    ):
        np.save(tmp_path / "x.npy", array)
        assert load_samples(tmp_path / "x.npy")[:].dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64", ">f4", "uint16"])
def test_arrays_stay_in_their_file_until_a_batch_is_asked_for(tmp_path, dtype):
    array = np.arange(60).reshape(20, 3).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    samples = load_samples(tmp_path / "x.npy")
    assert samples.take(torch.tensor([3, 1])).tolist() == array[[3, 1]].tolist()
    assert torch.cat(list(samples.batches(7))).tolist() == array.tolist()
    if dtype in ("uint8", "float32", "float64", "int64"):
        # Written to behind its back, which copies in memory would not show.
        np.lib.format.open_memmap(tmp_path / "x.npy", "r+")[0, 0] = 99
        assert samples.take(torch.tensor([0]))[0, 0] == 99


def test_the_digest_is_that_of_the_samples(tmp_path):
    array = np.arange(12, dtype=np.float64).reshape(4, 3)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array.astype(np.float32))
    np.save(tmp_path / "c.npy", array[::-1])
    a, b, c = (load_samples(tmp_path / f"{name}.npy").digest() for name in "abc")
    assert a == b != c


def test_annotated_data(tmp_path):
    h5py = pytest.importorskip("h5py")
    counts = sparse.random(6, 5, 0.5, "csr", random_state=0)
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["layers/dense"] = counts.toarray()
        for name, matrix in (("X", counts), ("layers/columns", counts.tocsc())):
            group = file.create_group(name)
            group.attrs["encoding-type"] = f"{matrix.format}_matrix"
            group.attrs["shape"] = matrix.shape
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(matrix, part)
    for key in (None, "dense", "columns", "layers/dense"):
        got = load_array(tmp_path / "a.h5ad", key=key)
        torch.testing.assert_close(got, torch.from_numpy(counts.toarray()).float())
    with pytest.raises(
        InputError, match="no array 'raw'; it holds X, layers/columns, layers/dense"
    ):
        load_array(tmp_path / "a.h5ad", key="raw")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("junk.npy", b"not numpy at all", "does not begin as a .npy file does"),
        ("empty.npy", b"", "does not begin as a .npy file does"),
        ("junk.npz", b"not a zip", "does not begin as a .npz file does"),
        ("junk.pt", b"not a tensor", "could not be read"),
        ("junk.csv", b"a,b\n1,2\n3\n", "could not be read"),
        (
            "words.csv",
            b"name,age\nann,3\n",
            r"column 1 \('name'\) holds 'ann': all columns must be",
        ),
        ("none.csv", b"", "is empty"),
        ("junk.bin", b"\1\2\3\4\5\6", "must be .npy, .npz"),
        ("none.bin", b"", "must be .npy, .npz"),
    ],
)
def test_junk_is_one_line_that_names_the_file(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=text) as caught:
        load_array(tmp_path / name)
    assert name in str(caught.value)
    assert "pickle" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_objects_and_truncated_arrays_are_named(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(InputError, match="must hold numbers, got Python objects"):
            load_array(tmp_path / name)
    np.save(tmp_path / "x.npy", np.zeros((9, 9)))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-5])
    with pytest.raises(InputError, match="could not be read"):
        load_array(tmp_path / "x.npy")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for index, (size, mode) in enumerate([((8, 6), "RGB"), ((5, 9), "L"), ((12, 12), "RGBA")]):
        image = Image.new(mode, size, 40 * index if mode == "L" else (40 * index, 0, 0))
        image.save(path / f"{index}.png")
    return path


def test_images_are_made_one_shape(folder):
    for options, shape in (
        (ImageOptions((4, 6)), (3, 3, 4, 6)),
        (ImageOptions((4, 6), "resize", "grey"), (3, 4, 6)),
        (ImageOptions((5, 5), colour="rgb"), (3, 3, 5, 5)),
    ):
        assert load_folder(folder, options).shape == shape
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))
    wide.save(folder / "0.png")
    cropped = load_folder(folder, ImageOptions((10, 10), colour="grey"))[0]
    stretched = load_folder(folder, ImageOptions((10, 10), "resize", "grey"))[0]
    assert cropped.min() == 255
    assert stretched.min() == 0


def test_broken_images_are_fatal_or_skipped(folder):
    (folder / "1.png").write_bytes(b"\x89PNG and then nothing")
    options = ImageOptions((4, 4))
    with pytest.raises(InputError, match=r"1\.png could not be read: .*--broken skip"):
        load_folder(folder, options)
    for cache in (None, folder.parent / "cache"):
        said = []
        skipping = ImageOptions((4, 4), broken="skip")
        got = load_folder(folder, skipping, cache=cache, say=said.append)
        assert got.shape == (2, 3, 4, 4)
        assert got[1, 0].max() == 80
        assert "1 of 3 images skipped" in said[0]
    (folder / "0.png").write_bytes(b"")
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 3 images could be read"):
        load_folder(folder, ImageOptions((4, 4), broken="skip"))


def test_images_are_decoded_once(folder, monkeypatch):
    from vaefast.train import images

    cache, options, decoded = folder.parent / "cache", ImageOptions((4, 4)), []
    pixels = images._pixels

    def counting(*arguments):
        decoded.append(arguments)
        return pixels(*arguments)

    monkeypatch.setattr(images, "_pixels", counting)
    first = np.array(load_folder(folder, options, cache=cache))
    again = load_folder(folder, options, cache=cache)
    assert isinstance(again, np.memmap)
    assert len(decoded) == 3
    np.testing.assert_array_equal(first, again)
    load_folder(folder, ImageOptions((4, 5)), cache=cache)
    assert len(decoded) == 6
    Image.new("RGB", (8, 6), (200, 0, 0)).save(folder / "0.png")
    assert load_folder(folder, options, cache=cache)[0, 0].max() == 200
    said = []
    (folder.parent / "file").write_text("")
    load_folder(folder, options, cache=folder.parent / "file" / "cache", say=said.append)
    assert "cannot be written" in said[0]


KINDS = sorted({str(v) for v in vars(torch).values() if isinstance(v, torch.dtype)})


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_dtype_are_read_or_named(tmp_path, kind):
    path, dtype = tmp_path / "x.pt", getattr(torch, kind.removeprefix("torch."))
    try:
        torch.save(torch.eye(4).to(dtype), path)
    except Exception:
        pytest.skip("torch does not make or save it")
    try:
        samples = load_samples(path)
    except InputError as error:
        assert f"x.pt must hold real numbers, got {kind}" in str(error)
        return
    check_target(samples, "gaussian")
    samples.digest()
    assert samples.range() == (0.0, 1.0)
    assert samples[:].float().equal(torch.eye(4))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.eye(4).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.eye(4).to_sparse_csr(), "torch.sparse_csr"),
        (lambda: torch.eye(4, device="meta"), "meta"),
        (lambda: torch.nested.nested_tensor([torch.eye(2), torch.eye(3)]), "nested"),
    ],
)
def test_tensors_that_are_not_dense_are_named(tmp_path, make, text):
    torch.save(make(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"x.pt must hold a dense tensor, got {text}"):
        load_samples(tmp_path / "x.pt")


def test_a_tensor_that_is_a_view_or_wants_a_gradient_is_read(tmp_path):
    for tensor in (torch.nn.Parameter(torch.eye(4)), (-torch.eye(4))._neg_view()):
        torch.save(tensor, tmp_path / "x.pt")
        samples = load_samples(tmp_path / "x.pt")
        samples.digest()
        assert samples[:].equal(torch.eye(4))
