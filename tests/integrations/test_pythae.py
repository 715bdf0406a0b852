"""pythae's models by its own trainer: patched against its own code, and against the papers."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from vaefast.integrations import pythae as integration

models = pytest.importorskip("pythae.models", reason="pythae is not installed")
trainers = pytest.importorskip("pythae.trainers", reason="pythae is not installed")
BaseDataset = pytest.importorskip("pythae.data.datasets").BaseDataset
ModelOutput = pytest.importorskip("pythae.models.base.base_utils").ModelOutput
networks = pytest.importorskip("pythae.models.nn")

SHAPE, LATENT, BATCH = (1, 3, 4), 5, 7


class Encoder(networks.BaseEncoder):
    def __init__(self):
        super().__init__()
        self.mu, self.log_var = nn.Linear(12, LATENT), nn.Linear(12, LATENT)

    def forward(self, x):
        x = x.flatten(1)
        return ModelOutput(embedding=self.mu(x), log_covariance=self.log_var(x))


class Decoder(networks.BaseDecoder):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(LATENT, 12)

    def forward(self, z):
        return ModelOutput(reconstruction=self.layer(z).sigmoid().reshape(-1, *SHAPE))


# Name in pythae.models: (model, configuration, settings).
MODELS = {
    "VAE": (models.VAE, models.VAEConfig, {}),
    "BetaVAE": (models.BetaVAE, models.BetaVAEConfig, {"beta": 3.0}),
    "DisentangledBetaVAE": (
        models.DisentangledBetaVAE, models.DisentangledBetaVAEConfig, {"beta": 2.0, "C": 3.0},
    ),
    "BetaTCVAE": (
        models.BetaTCVAE, models.BetaTCVAEConfig, {"alpha": 0.7, "beta": 4.0, "gamma": 1.2},
    ),
    "BetaTCVAE, weighted": (models.BetaTCVAE, models.BetaTCVAEConfig, {"use_mss": False}),
    "INFOVAE_MMD": (models.INFOVAE_MMD, models.INFOVAE_MMD_Config, {"alpha": 0.3, "lbd": 5.0}),
    "INFOVAE_MMD, rbf": (
        models.INFOVAE_MMD, models.INFOVAE_MMD_Config,
        {"kernel_choice": "rbf", "kernel_bandwidth": 0.7, "lbd": 5.0},
    ),
    "WAE_MMD": (
        models.WAE_MMD, models.WAE_MMD_Config,
        {"kernel_bandwidth": 0.7, "reg_weight": 4.0, "reconstruction_loss_scale": 0.3},
    ),
    "WAE_MMD, rbf": (models.WAE_MMD, models.WAE_MMD_Config, {"kernel_choice": "rbf"}),
    "IWAE": (models.IWAE, models.IWAEConfig, {"number_samples": 6}),
    "CIWAE": (models.CIWAE, models.CIWAEConfig, {"number_samples": 6, "beta": 0.3}),
    "MIWAE": (
        models.MIWAE, models.MIWAEConfig, {"number_samples": 6, "number_gradient_estimates": 3},
    ),
    "PIWAE": (
        models.PIWAE, models.PIWAEConfig, {"number_samples": 6, "number_gradient_estimates": 3},
    ),
    "VAMP": (models.VAMP, models.VAMPConfig, {"number_components": 9}),
    "VAMP, warming up": (
        models.VAMP, models.VAMPConfig, {"number_components": 9, "linear_scheduling_steps": 200},
    ),
}  # fmt: skip
# What the papers have otherwise than pythae.
DIFFER = {"BetaTCVAE", "IWAE", "CIWAE", "MIWAE", "PIWAE"}
RECONSTRUCTIONS = [
    (name, loss)
    for name in MODELS
    for loss in ("mse", "bce")
    if loss == "mse" or "WAE_MMD" not in name
]


def model(name, reconstruction="mse", **more):
    kind, config, settings = MODELS[name]
    if "WAE_MMD" not in name:
        settings = {**settings, "reconstruction_loss": reconstruction}
    torch.manual_seed(3)
    made = kind(
        config(input_dim=SHAPE, latent_dim=LATENT, **settings, **more),
        encoder=Encoder(), decoder=Decoder(),
    )  # fmt: skip
    made.device = "cpu"
    return made


def step(made, seed=5, dtype=None):
    """What a step gives: all that the model says, and its gradients."""
    x = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1))
    if dtype is not None:
        made, x = copy.deepcopy(made).to(dtype), x.to(dtype)
        if hasattr(made, "idle_input"):
            made.idle_input = made.idle_input.to(dtype)
    made.zero_grad()
    torch.manual_seed(seed)
    output = made({"data": x}, epoch=12, dataset_size=50)
    output.loss.backward()
    found = {name: value.detach() for name, value in output.items() if torch.is_tensor(value)}
    found.update({f"d {n}": p.grad for n, p in made.named_parameters() if p.grad is not None})
    return found


class Float32Noise:
    """`torch.randn_like` of float64 as it draws float32: a step in float64 on the same noise."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.plain = monkeypatch, torch.randn_like

    def __call__(self, like, **settings):
        return self.plain(like.float()).to(like.dtype)

    def __enter__(self):
        self.monkeypatch.setattr(torch, "randn_like", self)

    def __exit__(self, *error):
        self.monkeypatch.undo()


@pytest.mark.parametrize(("name", "loss"), RECONSTRUCTIONS)
def test_on_the_same_noise_the_patched_model_is_pythaes(name, loss, monkeypatch):
    made = model(name, loss)
    with Float32Noise(monkeypatch):
        exact = step(made, dtype=torch.float64)
    want = step(made)
    with integration.patched(rng="torch", compat=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = step(made)
        with Float32Noise(monkeypatch):
            wide = step(made, dtype=torch.float64)
    assert set(got) == set(want)
    for what in want:
        torch.testing.assert_close(got[what], want[what], rtol=2e-4, atol=2e-5, msg=what)
        # Of these two pythae makes its constants in float32 whatever the model is.
        rough = name.startswith(("BetaTCVAE", "VAMP"))
        rtol, atol = (1e-6, 1e-6) if rough else (1e-9, 1e-11)
        torch.testing.assert_close(wide[what], exact[what], rtol=rtol, atol=atol, msg=what)
        ours = (got[what].double() - exact[what]).abs().max()
        theirs = (want[what].double() - exact[what]).abs().max()
        assert ours <= theirs + 2e-6 * (1 + exact[what].abs().max()), what


def likelihood_of(loss, recon_x, x):
    if loss == "mse":
        return -0.5 * ((recon_x - x) ** 2).sum(-1)
    return (x * recon_x.log() + (1 - x) * (1 - recon_x).log()).sum(-1)


def papers(made, seed=5):
    """The losses of the papers by plain formulas in float64, on float32's noise: (value of `loss`,
    loss of the encoder, loss of the decoder, parameters)."""
    made = copy.deepcopy(made).double()
    x = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    found = made.encoder(x)
    mu, log_var = found.embedding, found.log_covariance
    loss = made.model_config.reconstruction_loss
    torch.manual_seed(seed)
    samples = (made.n_samples,) if hasattr(made, "n_samples") else ()
    samples = (getattr(made, "gradient_n_estimates", 1), *samples) if samples else ()
    noise = torch.randn(BATCH, math.prod(samples), LATENT).double().view(BATCH, *samples, LATENT)
    mu, log_var = (t.view(BATCH, *[1] * len(samples), LATENT) for t in (mu, log_var))
    z = mu + torch.exp(0.5 * log_var) * noise
    recon_x = made.decoder(z.flatten(0, -2)).reconstruction.view(BATCH, *samples, 12)
    log_x = likelihood_of(loss, recon_x, x.view(BATCH, *[1] * len(samples), 12))
    log_normal = lambda z, m, v: -0.5 * (math.log(2 * math.pi) + v + (z - m) ** 2 * torch.exp(-v))  # noqa: E731
    log_q, log_p = log_normal(z, mu, log_var).sum(-1), log_normal(z, 0 * z, 0 * z).sum(-1)
    if not samples:
        others, size = BATCH - 1, 50
        weights = torch.full((BATCH, BATCH), 1 / others, dtype=torch.float64)
        for i in range(BATCH):
            weights[i, i], weights[i, (i + 1) % BATCH] = 1 / size, (size - others) / (size * others)
        pairs = log_normal(z[:, None], mu, log_var)
        joint = torch.logsumexp(weights.log() + pairs.sum(-1), 1)
        apart = torch.logsumexp(weights.log()[..., None] + pairs, 1).sum(1)
        value = (
            -log_x + made.alpha * (log_q - joint) + made.beta * (joint - apart)
            + made.gamma * (apart - log_p)
        ).mean()  # fmt: skip
        return value, value, value, made
    log_w = log_x + log_p - log_q
    bound = lambda values, dim: torch.logsumexp(values, dim) - math.log(values.shape[dim])  # noqa: E731
    iwae, miwae = -bound(log_w.flatten(1), 1).mean(), -bound(log_w, 2).mean()
    if isinstance(made, models.PIWAE):
        return miwae + iwae, miwae, iwae, made
    one = {models.IWAE: iwae, models.MIWAE: miwae}.get(type(made))
    one = made.beta * -log_w.mean() + (1 - made.beta) * iwae if one is None else one
    return one, one, one, made


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("name", sorted(DIFFER))
def test_by_default_it_is_the_paper(name, loss):
    made = model(name, loss)
    value, of_encoder, of_decoder, exact = papers(made)
    want = {}
    for part, one in (("encoder", of_encoder), ("decoder", of_decoder)):
        named = [(n, p) for n, p in exact.named_parameters() if n.startswith(part)]
        slopes = torch.autograd.grad(one, [p for _, p in named], retain_graph=True)
        want.update({f"d {n}": slope for (n, _), slope in zip(named, slopes, strict=True)})
    with (
        integration.patched(rng="torch"),
        pytest.warns(UserWarning, match=f"{name}.* as in pythae"),
    ):
        got = step(made)
    with integration.patched(rng="torch", compat=True):
        theirs = step(made)
    torch.testing.assert_close(got["loss"].double(), value.detach(), rtol=1e-5, atol=1e-5)
    for what, slope in want.items():
        torch.testing.assert_close(got[what].double(), slope, rtol=1e-4, atol=1e-5, msg=what)
    assert (theirs["loss"].double() - value).abs() > 1e-3
    if name in ("BetaTCVAE", "MIWAE", "PIWAE"):
        apart = [(theirs[w].double() - want[w]).abs().max() for w in want]
        assert max(apart) > 1e-3


def test_it_says_once_what_differs():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with integration.patched():
            for name in (*MODELS, *MODELS):
                step(model(name))
        told = [str(w.message) for w in seen if "as in pythae" in str(w.message)]
    assert sorted(text.split(": ")[1].split("'")[0].split(" ")[0] for text in told) == sorted(
        DIFFER
    )


def test_the_networks_of_piwae_are_trained_apart_by_the_coupled_trainer():
    made = model("PIWAE")
    _, of_encoder, of_decoder, exact = papers(made)
    x = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1))
    with integration.patched(rng="torch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        output = made({"data": x})
    # As CoupledOptimizerTrainer does it.
    made.encoder.zero_grad()
    output.encoder_loss.backward(retain_graph=True)
    made.decoder.zero_grad()
    output.decoder_loss.backward(retain_graph=True)
    for part, loss in ((made.encoder, of_encoder), (made.decoder, of_decoder)):
        own = exact.encoder if part is made.encoder else exact.decoder
        want = torch.autograd.grad(loss, list(own.parameters()), retain_graph=True)
        for p, slope in zip(part.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad.double(), slope, rtol=1e-4, atol=1e-5)


def trained(name, folder, coupled=False):
    """A model after pythae's own trainer, and its weights before."""
    made = model(name)
    made.device = None
    before = copy.deepcopy(made.state_dict())
    data = torch.rand(46, *SHAPE, generator=torch.Generator().manual_seed(2))
    dataset = BaseDataset(data, torch.ones(46))
    kind = "CoupledOptimizerTrainer" if coupled else "BaseTrainer"
    rates = {"encoder_learning_rate": 1e-2, "decoder_learning_rate": 1e-2}
    settings = getattr(trainers, f"{kind}Config")(
        output_dir=str(folder), num_epochs=2, per_device_train_batch_size=20,
        per_device_eval_batch_size=20, no_cuda=True,
        **(rates if coupled else {"learning_rate": 1e-2}),
    )  # fmt: skip
    trainer = getattr(trainers, kind)(made, dataset, eval_dataset=dataset, training_config=settings)
    trainer.train()
    return made, before


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_its_own_trainer_trains(name, coupled, tmp_path):
    if coupled and name != "PIWAE":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, _ = trained(name, tmp_path / "theirs", coupled)
        with integration.patched(rng="torch", compat=True):
            same, before = trained(name, tmp_path / "same", coupled)
        with integration.patched():
            ours, _ = trained(name, tmp_path / "ours", coupled)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(same.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)
    moved = [(ours.state_dict()[key] - before[key]).abs().max() for key in before]
    assert all(torch.isfinite(v).all() for v in ours.state_dict().values())
    assert sum(m > 1e-3 for m in moved) >= 4


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"WAE_MMD", "WAE_MMD, rbf"}))
def test_the_librarys_noise_is_reproducible_and_another(name):
    made = model(name)
    theirs = step(made)["z"]
    with integration.patched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, again, other = step(made), step(made), step(made, seed=6)
    assert all(torch.equal(first[what], again[what]) for what in first)
    assert not torch.equal(first["z"], theirs) and not torch.equal(first["z"], other["z"])
    assert first["z"].shape == theirs.shape


MANY = ["IWAE", "CIWAE", "MIWAE", "PIWAE"]


def lying(name):
    """The arguments of `loss_function` as pythae lays them: [B, *samples, *], dense."""
    made = model(name)
    samples = tuple(v for v in (getattr(made, "gradient_n_estimates", None), made.n_samples) if v)
    generator = torch.Generator().manual_seed(4)
    draw = lambda *size: torch.randn(BATCH, *samples, *size, generator=generator)  # noqa: E731
    mu, log_var = (draw(LATENT)[:, :1].expand(BATCH, *samples, LATENT).contiguous()
                   if len(samples) == 1 else draw(LATENT) for _ in range(2))  # fmt: skip
    recon_x, x = draw(12).requires_grad_(), torch.rand(BATCH, *SHAPE, generator=generator)
    return made, (recon_x, x, mu.requires_grad_(), log_var.requires_grad_(), draw(LATENT))


@pytest.mark.parametrize("name", MANY)
def test_loss_function_takes_pythaes_layout(name):
    made, given = lying(name)
    want = made.loss_function(*given)
    wanted = torch.autograd.grad(want[0], [given[0], given[2], given[3]])
    with integration.patched(compat=True):
        got = made.loss_function(*given)
        slopes = torch.autograd.grad(got[0], [given[0], given[2], given[3]])
    for one, two in zip((*got, *slopes), (*want, *wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MANY)
def test_neither_layout_is_copied(name, monkeypatch):
    made, given = lying(name)
    plain, copied = torch.Tensor.contiguous, []

    def contiguous(tensor, **settings):
        if not tensor.is_contiguous() and tensor.numel() > BATCH * 18:
            copied.append(tuple(tensor.shape))
        return plain(tensor, **settings)

    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    with integration.patched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.loss_function(*given)[0].backward()
        step(made)
    assert not copied


@pytest.mark.parametrize("name", MODELS)
def test_what_a_subclass_has_of_its_own_is_called_as_pythae_calls_it(name):
    kind = MODELS[name][0]
    made, seen = model(name), {}

    class Own(kind):
        def loss_function(self, *given):
            seen["loss"] = [t.shape for t in given if torch.is_tensor(t)]
            return super().loss_function(*given)

        def _sample_gauss(self, mu, std):
            seen["noise"] = (mu.shape, std.shape)
            return super()._sample_gauss(mu, std)

    if "WAE_MMD" in name:
        del Own._sample_gauss
    made.__class__ = Own
    want, shapes = step(made), dict(seen)
    seen.clear()
    with integration.patched(compat=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = step(made)
    assert seen == shapes
    for what in want:
        torch.testing.assert_close(got[what], want[what], rtol=1e-4, atol=1e-5, msg=what)


def test_the_likelihood_that_vamp_estimates_stays():
    made, data = model("VAMP"), torch.rand(2, *SHAPE)
    torch.manual_seed(0)
    want = made.get_nll(data, n_samples=20, batch_size=10)
    with integration.patched(rng="torch"):
        torch.manual_seed(0)
        got = made.get_nll(data, n_samples=20, batch_size=10)
    assert got == pytest.approx(want, rel=1e-5)


def test_whole_numbers_are_no_pixels():
    made, x = model("VAE"), torch.randint(0, 5, (BATCH, *SHAPE), dtype=torch.uint8)
    recon_x, mu = torch.rand(BATCH, *SHAPE), torch.zeros(BATCH, LATENT)
    want = made.loss_function(recon_x, x, mu, mu, mu)[0]
    with integration.patched():
        torch.testing.assert_close(made.loss_function(recon_x, x, mu, mu, mu)[0], want)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_needs_no_gradient(name):
    made = model(name).eval()
    with integration.patched(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        assert torch.isfinite(made({"data": torch.rand(BATCH, *SHAPE)}).loss)


def test_patching_is_undone():
    before = {kind: dict(vars(kind)) for kind, _, _ in MODELS.values()}
    names = integration.patch().replaced
    assert any("VAMP._log_p_z" in name for name in names)
    assert models.VAE.forward.__module__ == integration.__name__
    integration.unpatch()
    assert before == {kind: dict(vars(kind)) for kind in before}
    with pytest.raises(ValueError, match="rng must be one of 'philox', 'torch', got 'numpy'"):
        integration.patch(rng="numpy")
