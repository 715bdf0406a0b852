"""Runs that are killed, share a folder, meet a full disk: whole files, or one clear line."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command import vaefast
from program import python

from vaefast.train import InputError
from vaefast.train.files import part_of, whole
from vaefast.train.run_folder import RunFolder, load

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's locks and signals")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_data()


def save_data():
    np.save("x.npy", np.random.default_rng(0).random((40, 6)).astype(np.float32))


def train(*arguments, code=0):
    return vaefast("train", "x.npy", "--width", 8, "--latent", 2, *arguments, code=code)


def resume(run, epochs, code=0):
    return vaefast("train", "x.npy", "--out", run, "--resume", "--epochs", epochs, code=code)


def files(run):
    return {name: (run / name).read_bytes() for name in ("metrics.csv", "weights.safetensors")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of two and of four epochs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_data()
        train("--epochs", 2, "--out", "two")
        train("--epochs", 4, "--out", "four")
    return folder


@pytest.fixture
def finished(tmp_path, runs):
    """A run of two epochs, and what it is to leave after two more."""
    shutil.copytree(runs / "two", tmp_path / "run")
    return tmp_path / "run", files(runs / "four")


def test_a_file_takes_its_place_whole(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("before")

    def interrupted():
        with whole(target) as part:
            assert part.parent == target.parent
            part.write_text("half")
            assert target.read_text() == "before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "before"
    assert not part_of(target).exists()
    with whole(target, sync=True) as part:
        part.write_text("after")
    assert target.read_text() == "after"
    assert list(tmp_path.glob("a*")) == [target]


def test_an_overwritten_run_leaves_nothing_to_resume_from(tmp_path, finished):
    run, _ = finished
    (run / "mine.txt").write_text("kept")
    with RunFolder(run, overwrite=True):
        left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert left == {".lock", "config.json", "mine.txt"}
    assert "holds no checkpoint to resume from" in resume(run, 4, code=2)
    train("--epochs", 1, "--seed", 7, "--out", run, "--overwrite")
    assert json.loads((run / "config.json").read_text())["training"]["seed"] == 7


def test_bad_options_leave_the_run_that_is_overwritten(finished, monkeypatch):
    run, _ = finished
    before = files(run)
    output = train("--out", run, "--overwrite", "--accelerator", "abacus", code=2)
    assert "accelerator 'abacus' cannot be used" in output
    if not torch.cuda.is_available():
        output = train("--out", run, "--overwrite", "--accelerator", "gpu", code=2)
        assert "accelerator 'gpu' cannot be used" in output
        assert len(output.splitlines()) == 1
    assert files(run) == before


def test_one_process_at_a_time_writes_into_a_folder(tmp_path):
    code = (
        "import sys, time; from vaefast.train.run_folder import RunFolder; "
        "run = RunFolder('run'); run.write_json('config.json', {}); print('held', flush=True); "
        "time.sleep(600)"
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            for ways in ({"overwrite": True}, {"resume": True}):
                with pytest.raises(InputError, match=f"being written by process {other.pid}:"):
                    RunFolder("run", **ways)
        finally:
            other.kill()
    said = []
    with RunFolder("run", overwrite=True, say=said.append):
        assert said == [f"run: process {other.pid}, which wrote here, did not finish"]
    with RunFolder("run", overwrite=True, say=said.append):
        assert len(said) == 1


def test_a_folder_that_a_killed_process_had_just_made_is_empty(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text('{"pid": 1')
    (tmp_path / "run" / "config.part.json").write_text('{"comm')
    with RunFolder("run"):
        assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.each(3)
@pytest.mark.parametrize("tail", ["3,9,0.12", "3,9", "3,9,0.1,0.2,0.3,0.4,0.5,0."])
def test_a_last_row_that_was_cut_off_is_made_anew(finished, tail):
    run, want = finished
    with (run / "metrics.csv").open("a") as file:
        file.write(tail)
    output = resume(run, 4)
    assert "the last row was cut off, and is left out" in output
    assert files(run) == want


def test_a_row_that_cannot_be_read_is_named(finished):
    run, _ = finished
    header, *rows = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join([header, "1,?\n", *rows]))
    assert "metrics.csv, line 2: cannot be read" in resume(run, 4, code=2)


@pytest.mark.each(3)
@pytest.mark.parametrize("damage", ["cut", "emptied", "other", "removed"])
def test_the_checkpoint_before_is_taken_where_the_last_is_torn(finished, damage):
    run, want = finished
    last = run / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    if damage == "removed":
        last.unlink()
    elif damage == "other":
        torch.save({"weights": 1}, last)
    else:
        # Not through the name: the one before must not share it.
        last.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    output = "".join(resume(run, 4).split())
    assert "last.ckptcannotberead:goingonfrom" in output
    assert "previous.ckpt,step1" in output
    assert files(run) == want


def test_checkpoints_that_are_all_torn_are_named(finished):
    run, _ = finished
    for name in ("last.ckpt", "previous.ckpt"):
        (run / "checkpoints" / name).write_bytes(b"PK")
    output = resume(run, 4, code=2)
    assert "last.ckpt cannot be read, and neither can" in output


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_torn_file_is_named(finished, name):
    run, _ = finished
    content = (run / name).read_bytes()
    for part in (content[: len(content) // 2], b"", b"[]"):
        (run / name).write_bytes(part)
        with pytest.raises(InputError, match=name):
            load(run)
    if name == "config.json":
        assert "config.json" in resume(run, 4, code=2)
        (run / name).write_text('{"command": "train", "model": {}}')
        assert "lacks arch" in resume(run, 4, code=2)


@pytest.mark.each(5)
@pytest.mark.parametrize(
    ("command", "where"), [("train", n) for n in range(7)] + [("demo", n) for n in (0, 1, 4, 8)]
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, command, where):
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > where:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    first = ("demo",) if command == "demo" else ("train", "x.npy", "--width", 8)
    output = vaefast(*first, "--smoke", "--out", "run", code=2)
    assert output.splitlines()[-1].startswith("vaefast: No space left on device: ")
    assert not [p for p in (tmp_path / "run").rglob("*") if ".part" in p.name]


def command(*arguments):
    code = "from vaefast_command import main; main()"
    return python(code, *map(str, arguments))


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_one_line(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        command("train", "x.npy", "--width", "64", "--smoke", "--out", "run"),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("vaefast: File too large")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(tmp_path):
    epochs, pick = 12, random.Random(0)
    train("--epochs", epochs, "--out", "calm")
    run = tmp_path / "run"
    arguments = command("train", "x.npy", "--out", "run", "--epochs", epochs)
    first = [*arguments, "--width", "8", "--latent", "2"]
    killed = 0
    for attempt in range(4):
        started = (run / "checkpoints" / "last.ckpt").exists()
        before = metrics_time(run)
        with subprocess.Popen(
            [*arguments, "--resume"] if started else [*first, "--overwrite"] if attempt else first,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            # From its first row on: what comes before is Python's imports.
            end = time.monotonic() + 300
            while metrics_time(run) == before and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.002)
            time.sleep(pick.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        killed += process.returncode != 0
        if process.returncode == 0:
            break
    assert killed
    resume(run, epochs)
    assert files(run) == files(tmp_path / "calm")


def metrics_time(run: Path) -> float | None:
    try:
        return (run / "metrics.csv").stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.slow
# Behind the configuration and the settings: before the metrics, the best, the one before and the
# last checkpoint, of two epochs.
@pytest.mark.parametrize("number", [2, 4, 6, 7, 8, 9])
def test_killed_between_any_two_files_a_run_goes_on_as_if_it_had_not_been(tmp_path, runs, number):
    code = (
        "import os, signal, sys; replace, calls = os.replace, [];\n"
        "def killing(a, b):\n"
        f"    if len(calls) == {number}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    calls.append(b); replace(a, b)\n"
        "os.replace = killing\n"
        "from vaefast_command import main; main()"
    )
    first = ("train", "x.npy", "--width", "8", "--latent", "2", "--epochs", "4", "--out", "run")
    done = subprocess.run(python(code, *first), capture_output=True, timeout=500)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    run = tmp_path / "run"
    if (run / "checkpoints" / "last.ckpt").exists():
        assert "did not finish" in resume(run, 4)
    else:
        assert "no checkpoint to resume from" in resume(run, 4, code=2)
        train("--epochs", 4, "--out", run, "--overwrite")
    assert files(run) == files(runs / "four")
    assert not [p for p in run.rglob("*") if ".part" in p.name]
