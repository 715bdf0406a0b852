"""The report of a run: one page that stands alone, whatever the run was."""

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from command import vaefast
from html_page import Page as Read
from PIL import Image

from vaefast.report import draw, page
from vaefast.report.page import Page
from vaefast.report.run import keep_held_out, write_report
from vaefast.train import InputError
from vaefast.train.models import VAE
from vaefast.train.run_folder import RunFolder

SECTIONS = [
    "Figures",
    "Curves",
    "Samples",
    "Reconstructions",
    "Latent dimensions",
    "Walks",
    "Map of the latent space",
    "Settings",
]


def read(folder):
    found = Read((folder / "report.html").read_text(encoding="utf-8"))
    assert not found.faults
    return found


def images(found):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))))
        for a in found.of("img")
    ]


def a_run(folder, shape=(1, 8, 8), count=40, labels=None, rows=3, **settings):
    """A run's folder as training would leave it, of a model without training."""
    torch.manual_seed(0)
    model = {"shape": list(shape), "latent": 3, "width": 8, **settings}
    run = RunFolder(folder)
    run.write_json("config.json", {"command": "train", "model": model, "training": {"seed": 1}})
    vae = VAE(**model)
    run.write_weights(vae)
    for epoch in range(rows):
        run.append_metrics({"epoch": epoch + 1, "train_loss": 3.0 - epoch, "held_out_loss": 2.0})
    ends = {"held_out_before": {"elbo": -9.0}, "held_out_after": {"elbo": -4.5}}
    run.write_json("summary.json", ends)
    return run, vae, torch.rand(count, *shape)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    vaefast("demo", "--smoke", "--latent", 4, "--out", folder)
    return folder


def test_a_page_escapes_whatever_it_is_given():
    bad = "<script>alert('x')</script> & \"more\""
    document = Page(bad, bad)
    picture = draw.tiles(torch.rand(1, 1, 2, 2), columns=1, alt=bad)
    parts = [
        page.paragraph(bad),
        page.verdict(bad, None),
        page.table([bad, bad], [[bad, bad]], bad),
        page.details(bad, [page.strips([(bad, picture)])]),
    ]
    for _ in range(3):
        document.section(bad, parts)
    document.section("nothing", [])
    found = Read(document.html())
    assert not found.faults
    assert found.text.count(bad) > 20
    assert "nothing" not in found.text


def test_drawings_take_the_pages_colours_and_names_of_their_own():
    figures = []
    for index in range(2):
        figure, axes = draw.chart()
        axes.plot([0, 1], [0, index], color=draw.SERIES[index], label="a < b")
        axes.legend()
        figures.append(page.figure(draw.svg(figure, f"chart {index}"), "caption"))
    document = Page("t", "l")
    document.section("charts", [page.grid(figures)])
    text = document.html()
    assert not Read(text).faults
    drawings = text[text.index("<svg") :]
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]{3}\b", drawings)
    for name in ("--ink", "--rule", "--s1", "--s2"):
        assert f"var({name})" in drawings
        # In both themes.
        assert text.count(f"{name}:") == 2
    assert "DOCTYPE svg" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (12345.678, "12345.7"),
        (float("nan"), "nan"),
        (True, "yes"),
        (None, "–"),
        ([1, 8, 8], "1 × 8 × 8"),
        (["a", "b"], "a, b"),
        (list(range(9)), "9 values"),
        (3, "3"),
        ("<b>", "<b>"),
    ],
)
def test_values_are_shown_short(value, text):
    assert page.show(value) == text


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiles_are_the_images(channels):
    shown = torch.rand(5, channels, 4, 6)
    for data in (shown, (shown * 255).round().to(torch.uint8)):
        html = draw.tiles(data, columns=3, alt="five")
        (pixels,) = images(Read(f'<html lang="en"><h1></h1>{html}</html>'))
        assert pixels.shape == (9, 20, 4)
        color = pixels[:4, 7:13, :3] / 255
        want = shown[1, :3] if channels >= 3 else shown[1, :1].expand(3, -1, -1)
        np.testing.assert_allclose(color, want.permute(1, 2, 0), atol=0.006)
        assert (pixels[4, :, 3] == 0).all() and (pixels[5:, 14:, 3] == 0).all()


def test_tiles_of_values_that_are_no_colours():
    bad = torch.tensor([float("nan"), float("inf"), -1.0, 2.0]).view(1, 1, 2, 2)
    (pixels,) = images(
        Read(f'<html lang="en"><h1></h1>{draw.tiles(bad, columns=1, alt="x")}</html>')
    )
    assert pixels[..., 0].tolist() == [[0, 255], [0, 255]]


def test_the_demos_report_has_every_section(demo):
    found = read(demo)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", (demo / "report.html").read_text())
    assert headings == SECTIONS
    plane = "UMAP" if importlib.util.find_spec("umap") else "t-SNE"
    for text in ("ELBO", "active", plane, "coloured by label", "linear probe", "likelihood"):
        assert text in found.text
    # Samples, examples, reconstructions, a walk for each dimension.
    assert len(found.of("img")) == 3 + 4
    assert len(found.of("a")) == 1 + len(SECTIONS)
    settings = json.loads((demo / "config.json").read_text())
    assert page.show(settings["training"]["lr"]) in found.text


def test_walks_are_ordered_by_kl_and_show_it(demo):
    text = read(demo).text
    kl = [float(k) for k in re.findall(r"dimension \d: (\d+\.\d+) nats", text)]
    assert len(kl) == 4
    assert kl == sorted(kl, reverse=True)


def test_report_needs_the_folder_alone_and_repeats(demo, tmp_path):
    moved = tmp_path / demo.name
    shutil.copytree(demo, moved)
    before = (moved / "report.html").read_bytes()
    (moved / "report.html").unlink()
    assert str(moved / "report.html") in vaefast("report", moved)
    assert (moved / "report.html").read_bytes() == before


def test_what_a_run_lacks_is_said(demo, tmp_path):
    poor = tmp_path / "poor"
    shutil.copytree(demo, poor)
    for name in ("held_out.npz", "metrics.csv", "summary.json"):
        (poor / name).unlink()
    vaefast("report", poor)
    found = read(poor)
    assert "held_out.npz is missing" in found.text
    assert "Curves" not in found.text
    assert "as they are numbered" in found.text


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", '{"command": "lecture"}', "is no training run"),
        ("summary.json", "{", "summary.json cannot be read"),
        ("held_out.npz", "PK junk", "held_out.npz cannot be read"),
        ("held_out.npz", "", "held_out.npz cannot be read"),
        ("metrics.csv", "epoch,a\n1,x\n", "metrics.csv, line 2"),
    ],
)
def test_a_broken_file_is_named(demo, tmp_path, name, content, text):
    broken = tmp_path / "broken"
    shutil.copytree(demo, broken)
    (broken / name).write_text(content)
    assert text in vaefast("report", broken, code=2)


def test_a_folder_that_is_no_run_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert "holds no run" in vaefast("report", path, code=2)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_without_weights_is_said(tmp_path):
    with a_run(tmp_path / "run")[0] as run:
        run.file("weights.safetensors").unlink()
    assert "weights.safetensors missing" in vaefast("report", tmp_path / "run", code=2)


@pytest.mark.each(3)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 5), (2, 4, 4), (7,), (200,)])
def test_data_of_any_shape(tmp_path, shape):
    run, model, x = a_run(tmp_path / "run", shape)
    with run:
        keep_held_out(run, model, x)
        write_report(run)
    found = read(tmp_path / "run")
    assert "without labels" in found.text
    assert len(found.of("img")) == 3 + 3
    if shape == (200,):
        assert "64 features that differ most" in found.of("img")[0]["alt"]


@pytest.mark.parametrize("latent", [1, 2, 40])
def test_latents_of_any_size(tmp_path, latent):
    run, model, x = a_run(tmp_path / "run", latent=latent)
    with run:
        keep_held_out(run, model, x)
        write_report(run)
    text = read(tmp_path / "run").text
    words = {1: "the one dimension", 2: "the two dimensions as they are", 40: "24 more dimensions"}
    assert words[latent] in text


@pytest.mark.each(3)
@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (torch.arange(40) % 3, "coloured by label"),
        (torch.arange(40), "coloured by label"),
        (torch.zeros(40), "coloured by label"),
        (torch.arange(40) % 2 == 0, "coloured by label"),
        (None, "without labels"),
    ],
)
def test_labels_of_any_kind(tmp_path, labels, text):
    run, model, x = a_run(tmp_path / "run")
    with run:
        keep_held_out(run, model, x, labels)
        write_report(run)
    assert text in read(tmp_path / "run").text


def test_no_map_where_there_is_nothing_to_map(tmp_path):
    for name, count in (("few", 5), ("same", 40)):
        run, model, x = a_run(tmp_path / name, count=count)
        with run:
            if name == "same":
                x[:] = x[:1]
            keep_held_out(run, model, x)
            write_report(run)
    assert "too few held-out data" in read(tmp_path / "few").text
    assert "all posteriors have the same mean" in read(tmp_path / "same").text


def test_a_model_that_is_not_finite_still_has_a_report(tmp_path):
    run, model, x = a_run(tmp_path / "run")
    with run, torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        run.write_weights(model)
        keep_held_out(run, model, x)
        write_report(run)
    assert "not finite" in read(tmp_path / "run").text


@pytest.mark.slow
def test_an_autoencoders_report_speaks_of_no_kl(tmp_path):
    vaefast("demo", "--smoke", "--autoencoder", "--latent", 3, "--out", tmp_path / "run")
    text = read(tmp_path / "run").text
    assert "no posterior and no KL" in text
    assert "nats, collapsed" not in text
    assert "variance of their codes" in text


def test_a_killed_report_leaves_the_one_before(tmp_path, monkeypatch):
    run, model, x = a_run(tmp_path / "run")
    with run:
        keep_held_out(run, model, x)
        write_report(run)
        before = run.file("report.html").read_bytes()
        monkeypatch.setattr("vaefast.report.page.Page.html", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report(run)
    assert (tmp_path / "run" / "report.html").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.part*"))


def test_a_run_that_is_written_over_loses_its_report(tmp_path):
    run, model, x = a_run(tmp_path / "run")
    with run:
        keep_held_out(run, model, x)
        write_report(run)
    with RunFolder(tmp_path / "run", overwrite=True):
        assert {f.name for f in (tmp_path / "run").iterdir()} == {".lock", "config.json"}


def test_a_run_in_progress_is_left_alone(tmp_path):
    run, model, x = a_run(tmp_path / "run")
    with run:
        keep_held_out(run, model, x)
        with pytest.raises(InputError, match="being written by process"):
            RunFolder(tmp_path / "run", resume=True)


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_network(demo, tmp_path, width):
    picture = tmp_path / "page.png"
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
        *(f"--window-size={width},2000", f"--screenshot={picture}"),
    ]
    done = subprocess.run(
        [BROWSER, *options, f"file://{demo / 'report.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr
    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    assert pixels.shape == (2000, width)
    assert pixels.std() > 20
