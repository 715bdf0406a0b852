"""The training loop: interrupted anywhere it goes on to the same bits, whatever wrote the
checkpoint; and what it does with precision, clipping and gradients that are not finite."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from command import vaefast

from vaefast import _torch
from vaefast.train import finish
from vaefast.train.checkpoints import read
from vaefast.train.data import Parts, Samples
from vaefast.train.fit import Fit, fit
from vaefast.train.machine import Machine
from vaefast.train.objectives import ELBO, Loss
from vaefast.train.run_folder import RunFolder
from vaefast.train.trained import Batch, Means, Trained, means

CPU = ("--accelerator", "cpu")
SMALL = ("--width", 8, "--latent", 2, "--batch-size", 10, "--warmup", 2)


@pytest.fixture(scope="module")
def without_pictures():
    """Runs without their report, which takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "draw_all", lambda *_: [])
        for name in ("save_curves", "keep_held_out", "write_report"):
            patch.setattr(finish, name, lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, without_pictures):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).random((50, 6)).astype(np.float32))


def files(run):
    return {name: (run / name).read_bytes() for name in ("metrics.csv", "weights.safetensors")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory, without_pictures):
    """A run of three epochs of five steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("calm")
    np.save(folder / "x.npy", np.random.default_rng(0).random((50, 6)).astype(np.float32))
    vaefast("train", folder / "x.npy", *SMALL, "--epochs", 3, "--out", folder / "run", *CPU)
    return folder / "run"


def interrupted(monkeypatch, at, number=signal.SIGINT, method="_step"):
    """A run that gets a signal before its step number `at`."""
    whole = getattr(Fit, method)

    def interrupting(self, *arguments):
        if self.done == at:
            os.kill(os.getpid(), number)
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, method, interrupting)
        return vaefast("train", "x.npy", *SMALL, "--epochs", 3, "--out", "run", *CPU, code=130)


@pytest.mark.parametrize("at", [0, 2, 4, 5, 7])
def test_a_run_interrupted_at_any_step_goes_on_to_the_same_bits(tmp_path, monkeypatch, calm, at):
    output = interrupted(monkeypatch, at)
    assert "interrupted: vaefast train x.npy --out run --resume goes on" in output
    found = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert found["global_step"] == at + 1
    vaefast("train", "x.npy", "--out", "run", "--resume", "--epochs", 3, *CPU)
    assert files(tmp_path / "run") == files(calm)


def test_a_run_interrupted_while_it_validates_has_the_epochs_row(tmp_path, monkeypatch, calm):
    interrupted(monkeypatch, 10, method="_validate")
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    vaefast("train", "x.npy", "--out", "run", "--resume", "--epochs", 3, *CPU)
    assert files(tmp_path / "run") == files(calm)


def test_sigterm_is_as_graceful(tmp_path, monkeypatch, calm):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupted(monkeypatch, 6, signal.SIGTERM)
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert before == after
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"]
    vaefast("train", "x.npy", "--out", "run", "--resume", "--epochs", 3, *CPU)
    assert files(tmp_path / "run") == files(calm)


def as_the_trainer_wrote_it(path, batches):
    """Turns a checkpoint into what Lightning's Trainer left, of an older version."""
    found = torch.load(path, weights_only=True)
    mid_epoch = found["begun"] > 0
    old = {
        "epoch": found["epoch"] - (0 if mid_epoch else 1),
        "global_step": found["global_step"],
        "state_dict": found["state_dict"],
        "optimizer_states": [found["optimizer"]],
        "vaefast": {name: found["vaefast"][name] for name in ("sums", "skipped")},
        "loops": {
            "fit_loop": {
                "epoch_progress": {"current": {"processed": found["epoch"]}},
                "epoch_loop.batch_progress": {
                    "current": {"ready": found["begun"] or batches},
                    "is_last_batch": not mid_epoch,
                },
            }
        },
    }
    torch.save(old, path)


@pytest.mark.parametrize("at", ["end of an epoch", 7])
def test_a_checkpoint_of_the_trainer_is_gone_on_with(tmp_path, monkeypatch, calm, at):
    if at == 7:
        interrupted(monkeypatch, at)
    else:
        vaefast("train", "x.npy", *SMALL, "--epochs", 1, "--out", "run", *CPU)
    as_the_trainer_wrote_it(tmp_path / "run" / "checkpoints" / "last.ckpt", 5)
    vaefast("train", "x.npy", "--out", "run", "--resume", "--epochs", 3, *CPU)
    assert files(tmp_path / "run") == files(calm)


def test_a_trial_is_gone_on_with_after_its_epoch(tmp_path):
    vaefast("train", "x.npy", *SMALL, "--smoke", "--out", "run", *CPU)
    vaefast("train", "x.npy", "--out", "run", "--resume", "--epochs", 2, *CPU)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["1", "2"], ["2", "7"]]


def test_a_finished_run_that_is_resumed_is_as_it_was(tmp_path, calm):
    vaefast("train", "x.npy", *SMALL, "--epochs", 3, "--out", "run", *CPU)
    for epochs in (3, 1):
        output = vaefast("train", "x.npy", "--out", "run", "--resume", "--epochs", epochs, *CPU)
        assert f"run has its 3 epochs: --epochs {epochs} adds none" in output
        assert files(tmp_path / "run") == files(calm)


def a_fit(tmp_path, machine, x, **settings):
    torch.manual_seed(0)
    model = {"shape": list(x.shape[1:]), "latent": 2, "width": 8, "likelihood": "gaussian"}
    module = Trained(model)
    with RunFolder(tmp_path / "run") as run:
        run.write_json("config.json", {})
        data = Samples(x)
        parts = Parts(data, data)
        return fit(module, parts, run, machine=machine, **settings)


def test_data_is_not_rounded_with_the_activations(tmp_path, monkeypatch):
    seen, whole = [], ELBO.__call__

    def seeing(self, model, x, step):
        seen.append(x)
        return whole(self, model, x, step)

    monkeypatch.setattr(ELBO, "__call__", seeing)
    x = torch.rand(7, 6)
    for strategy in ("auto", "ddp"):
        machine = Machine("cpu", precision="bf16-mixed", strategy=strategy)
        a_fit(tmp_path / strategy, machine, x, epochs=1, batch_size=7)
        assert torch.equal(seen[-1].sum(), x[torch.randperm(7, generator=order())].sum())
        assert seen[-1].dtype == torch.float32
        if strategy == "ddp":
            torch.distributed.destroy_process_group()
    a_fit(tmp_path / "double", Machine("cpu", precision="64-true"), x, epochs=1, batch_size=7)
    assert seen[-1].dtype == torch.float64


def order():
    return torch.Generator().manual_seed(0)


class Norms:
    def __init__(self, limit=None):
        self.before, self.after, self.limit = [], [], limit

    def on_before_optimizer_step(self, module, optimizer):
        self.before.append(norm(module))
        step = optimizer.optimizer.step

        def stepping(*arguments, **settings):
            self.after.append(norm(module))
            optimizer.optimizer.step = step
            return step(*arguments, **settings)

        optimizer.optimizer.step = stepping


def norm(module):
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads).item() if grads else None


def test_gradients_are_clipped_to_the_norm(tmp_path):
    norms = Norms()
    machine = Machine("cpu", clip=0.01)
    a_fit(tmp_path, machine, torch.rand(20, 6), epochs=1, batch_size=5, callbacks=[norms])
    assert min(norms.before) > 0.02
    assert norms.after == pytest.approx([0.01] * 4, rel=1e-3)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_not_finite_is_found_anywhere(monkeypatch, private, dtype):
    if not private:
        monkeypatch.setattr(_torch, "_unscale", None)
    largest = torch.finfo(dtype).max
    grads = [torch.full((n,), largest, dtype=dtype) for n in (1, 17, 1000)]
    before = [g.clone() for g in grads]
    assert _torch.all_finite(grads)
    assert all(map(torch.equal, grads, before))
    assert _torch.all_finite([])
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place, index in ((0, 0), (1, 16), (2, 500)):
            grads[place][index] = bad
            assert not _torch.all_finite(grads)
            grads[place][index] = 1.0


def test_means_leave_out_what_is_not_finite():
    found = Means(finite=True)
    for value in (1.0, 4.0, float("nan"), float("inf")):
        found.add(Loss(*[torch.tensor(value)] * 3), 2)
    assert found.sums == [10.0, 10.0, 10.0, 4.0]
    assert means("train", found.sums)["train_nll"] == 2.5
    for _ in range(1000):
        found.add(Loss(*[torch.tensor(1.0)] * 3), 1)
    assert found.sums[3] == 1004
    found.clear()
    assert np.isnan(means("train", found.sums)["train_kl"])
    other = Means(finite=False)
    other.add(Loss(*[torch.tensor(float("inf"))] * 3), 1)
    assert other.sums[0] == float("inf")


def test_a_batch_without_its_place_is_the_whole():
    batch = Batch(torch.zeros(4, 2))
    assert (batch.start, batch.whole) == (0, 4)


def test_a_trainer_of_ones_own_trains_the_same_model(tmp_path):
    lightning = pytest.importorskip("lightning")
    from vaefast.train import LitVAE

    torch.manual_seed(0)
    model = {"shape": [6], "latent": 2, "width": 8, "likelihood": "gaussian"}
    module = LitVAE(model, {"name": "elbo", "beta": 0.5}, warmup=2, lr=1e-2)
    data = torch.rand(64, 6)
    loader = torch.utils.data.DataLoader(data, 16)
    held_out = []

    class Kept(lightning.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            held_out.append(trainer.callback_metrics["held_out_loss"].item())

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=8,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Kept()],
        gradient_clip_val=100.0,
    )
    trainer.fit(module, loader, loader)
    assert held_out[-1] < held_out[1]
    assert {"train_loss", "train_nll", "train_kl"} < trainer.callback_metrics.keys()
    assert module(data).shape == data.shape
    assert module.skipped == 0
    (module.trained.vae.encode(data)[0].sum() * float("inf")).backward()
    module.on_before_optimizer_step(None)
    assert module.skipped == 1
    assert all(p.grad is None for p in module.parameters())
