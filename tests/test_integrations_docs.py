"""The recipes and the Lightning module of docs/integrations.md, run; the formulas as the projects
write them, written anew."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import vaefast as vf

DOCS = Path(__file__).resolve().parent.parent / "docs" / "integrations.md"


def code(heading):
    """What the first block below `heading` defines."""
    text = DOCS.read_text().split(f"\n{heading}\n")[1]
    found = {"vf": vf, "torch": torch}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], found)
    return found


def draw(*size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def assert_same(ours, theirs, inputs):
    """Value and gradients, of float32 against the formula in float64 and in float32."""
    given = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    eager = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    wide = [t.double().requires_grad_() if t.is_floating_point() else t for t in inputs]
    got, formula, want = ours(*given), theirs(*eager), theirs(*wide)
    torch.testing.assert_close(got, formula, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-6)
    for loss in (got, formula, want):
        loss.backward()
    for one, two, exact in zip(given, eager, wide, strict=True):
        if exact.is_floating_point() and exact.grad is not None:
            scale = exact.grad.abs().max()
            mine, plain = ((t.grad.double() - exact.grad).abs().max() for t in (one, two))
            assert mine <= plain + 2e-6 * scale


@pytest.mark.parametrize("sparse", [False, True])
def test_recbole(sparse):
    def recbole(logits, ratings, mu, logvar, anneal=0.2):
        kl = -0.5 * torch.mean(torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)) * anneal
        return -(F.log_softmax(logits, 1) * ratings).sum(1).mean() + kl

    multvae_loss = code("### RecBole, Mult-VAE")["multvae_loss"]
    ratings = (torch.rand(6, 50) < 0.1).to(torch.float32)

    def ours(logits, mu, logvar):
        given = ratings.to_sparse_csr() if sparse else ratings
        return multvae_loss(logits, given, mu, logvar, 0.2)

    theirs = lambda logits, mu, logvar: recbole(logits, ratings, mu, logvar)  # noqa: E731
    assert_same(ours, theirs, [draw(6, 50), draw(6, 4, seed=1), draw(6, 4, seed=2)])


def test_vits():
    def kl_loss(z_p, logs_q, m_p, logs_p, mask):
        kl = logs_p - logs_q - 0.5 + 0.5 * (z_p - m_p) ** 2 * torch.exp(-2.0 * logs_p)
        return torch.sum(kl * mask) / torch.sum(mask)

    mask = torch.arange(9)[None, None] < torch.tensor([9, 4, 1])[:, None, None]
    inputs = [draw(3, 5, 9, seed=i) for i in range(4)]
    assert_same(code("### VITS")["vits_kl"], kl_loss, [*inputs, mask])


def test_monai():
    def monai(z_mu, z_sigma):
        kl = 0.5 * torch.sum(
            z_mu.pow(2) + z_sigma.pow(2) - torch.log(z_sigma.pow(2)) - 1, dim=[1, 2, 3, 4]
        )
        return torch.sum(kl) / kl.shape[0]

    step = code("### MONAI")["monai_step"]
    inputs = [draw(2, 3, 4, 4, 4), draw(2, 3, 4, 4, 4, seed=1).exp()]
    assert_same(lambda *given: step(*given)[1], monai, inputs)
    z, _ = step(torch.full((4000,), 3.0), torch.full((4000,), 2.0))
    assert abs(z.mean() - 3) < 0.2 and abs(z.std() - 2) < 0.2


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    lightning.seed_everything(0)
    model = code("### Lightning")["VAE"](width=12, latent=3)
    data = DataLoader(TensorDataset((torch.rand(64, 3, 4) < 0.2).float()), batch_size=16)
    seen = []

    class Record(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    trainer = lightning.Trainer(
        max_epochs=30, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[Record()],
    )  # fmt: skip
    trainer.fit(model, data)
    assert seen[-1]["loss"] == pytest.approx(seen[-1]["nll"] + seen[-1]["kl"], rel=1e-5)
    assert seen[-1]["loss"] < 0.9 * seen[0]["loss"]
    class_lines = re.search(r"class VAE.*?\n```", DOCS.read_text(), re.DOTALL)[0].splitlines()
    assert len(class_lines) <= 22
