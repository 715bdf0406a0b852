"""What people do to a model besides training it, under every patch alike: copies, pickles that are
loaded where there is no vaefast, compilers, autocast, threads, subclasses."""

import copy
import importlib
import importlib.util
import pickle
import subprocess
import threading
import warnings

import pytest
import torch
from program import python
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")


def scvi_step():
    import scvi

    kind = scvi.model.TOTALVI
    data = scvi.data.synthetic_iid(batch_size=24, n_genes=30, n_proteins=6, n_regions=5)
    kind.setup_anndata(data, batch_key="batch", protein_expression_obsm_key="protein_expression")
    model = kind(data, n_latent=3)
    batch = next(iter(model._make_data_loader(data, batch_size=20)))
    return model.module, lambda module: module(batch)[2].loss


def pythae_step():
    from pythae import models

    config = models.BetaTCVAEConfig(input_dim=(1, 3, 4), latent_dim=3, use_mss=False)
    model = models.BetaTCVAE(config)
    model.device = "cpu"
    x = torch.rand(7, 1, 3, 4)
    return model, lambda model: model({"data": x}, dataset_size=50)["loss"]


class Posterior(nn.Module):
    """A model that keeps the last posterior, as a callback that looks at it would."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        self.last = DiagonalGaussianDistribution(self.layer(x))
        return self.last.kl().mean() + self.last.nll(self.last.sample()).mean()


def diffusers_step():
    x = torch.randn(2, 3, 4, 4)
    return Posterior(), lambda model: model(x)


# By library: the package, what the tests need of it, and a small model with a step.
LIBRARIES = {
    "scvi": ("scvi", scvi_step),
    "pythae": ("pythae", pythae_step),
    "diffusers": ("diffusers", diffusers_step),
}


@pytest.fixture(params=LIBRARIES)
def library(request):
    package, make = LIBRARIES[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[integrations]'")
    module = importlib.import_module(f"vaefast.integrations.{request.param}")
    torch.manual_seed(0)
    yield module, *make()
    module.unpatch()


def train(model, step, steps=3):
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = step(model)
        loss.backward()
        optimizer.step()
    return loss.detach()


def test_copies_of_a_trained_model_go_on(library):
    integration, model, step = library
    with integration.patched():
        train(model, step)
        with torch.no_grad():
            step(model.eval())
        twin = copy.deepcopy(model)
        assert torch.isfinite(train(twin, step))
    assert torch.isfinite(train(copy.copy(twin), step))


@pytest.mark.slow
def test_a_model_trained_under_the_patch_is_loaded_without_vaefast(library, tmp_path):
    integration, model, step = library
    with integration.patched():
        train(model, step)
        with torch.no_grad():
            step(model.eval())
        # A class of this file cannot be found again from elsewhere.
        kept = model.last if isinstance(model, Posterior) else model
        whole = tmp_path / "model.pkl"
        whole.write_bytes(pickle.dumps(kept))
        torch.save(model.state_dict(), tmp_path / "state.pt")
    code = (
        "import sys\n"
        "sys.modules['vaefast'] = None\n"
        "import pickle, torch\n"
        "found = pickle.load(open(sys.argv[1], 'rb'))\n"
        "torch.load(sys.argv[2], weights_only=True)\n"
        "print(type(found).__module__)\n"
    )
    command = python(code, whole, tmp_path / "state.pt")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == type(kept).__module__


def test_scvis_normals_are_torchs_in_a_pickle_and_fused_in_copies():
    pytest.importorskip("scvi", reason="needs scvi-tools: pip install '.[integrations]'")
    from scvi.nn import _base_components

    from vaefast.distributions import FusedNormal
    from vaefast.integrations import scvi as integration

    with integration.patched():
        made = _base_components.Normal(torch.zeros(3), torch.ones(3), validate_args=False)
    for p in (made, made.expand((2, 3))):
        for twin in (copy.copy(p), copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
            assert twin.batch_shape == p.batch_shape
            assert torch.equal(twin.loc, p.loc) and torch.equal(twin.scale, p.scale)
            assert twin._validate_args is False
        assert type(twin) is torch.distributions.Normal
        assert copy.copy(p).loc is p.loc
        assert copy.deepcopy(p).loc is not p.loc
        assert isinstance(copy.deepcopy(p), FusedNormal) and isinstance(copy.copy(p), FusedNormal)


def test_under_autocast(library):
    integration, model, step = library
    with integration.patched(), torch.autocast("cpu", torch.bfloat16):
        loss = step(model)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)


def test_compiled(library):
    integration, model, step = library
    torch._dynamo.reset()
    with integration.patched():
        plain = step(model)
        compiled = torch.compile(lambda: step(model), backend="aot_eager")
        first, second = compiled(), compiled()
    for loss in (first, second):
        assert abs(loss - plain) < 0.3 * abs(plain) + 1
    torch._dynamo.reset()


def test_in_threads_at_once(library):
    integration, model, step = library
    twins, found = [copy.deepcopy(model) for _ in range(3)], {}

    def work(index):
        with integration.patched():
            found[index] = float(train(twins[index], step, 5))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(v == v for v in found.values())
    assert integration.unpatch() is None


def test_an_error_in_a_step_leaves_the_library_as_it_was(library):
    integration, model, step = library
    with pytest.raises(ZeroDivisionError), integration.patched():
        step(model)
        raise ZeroDivisionError
    assert integration.unpatch() is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.isfinite(step(model))
