"""Every private name of torch that the library uses may go: what stands in for it is right."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import torch
from program import python

import vaefast as vf

SOURCES = Path(vf.__file__).parent
TEXT = (SOURCES / "_torch.py").read_text()

# Asked for when the library is imported; torch itself goes on using them.
AT_IMPORT = [
    *re.findall(r'_private\(\s*"([\w.]+)"', TEXT),
    *re.findall(r'getattr\(torch\._C, "(\w+)"', TEXT),
    *re.findall(r'hasattr\(forward_ad, "(\w+)"', TEXT),
]
# Asked for at each call.
AT_CALLS = ["_is_zerotensor", "_backward_cls", "has_static_value"]

PROGRAM = """
import builtins, sys, torch, torch.fx.experimental.symbolic_shapes

*way, name = sys.argv[1].split(".")
owner = torch._C
if not way and hasattr(torch.autograd.forward_ad, name):
    owner = torch.autograd.forward_ad
for step in way:
    owner = getattr(owner, step)
there = getattr(owner, name, None)
if there is not None:
    delattr(owner, name)
import vaefast._torch
if there is not None:
    setattr(owner, name, there)
def without(value, asked, *default):
    return default[0] if asked == name else builtins.getattr(value, asked, *default)
vaefast._torch.getattr = without
import vaefast as vf

def step(mu, logvar, target):
    z, kl = vf.sample_kl(mu, logvar, seed=1)
    return vf.elbo_loss(z, target, kl=kl, likelihood="bernoulli").loss

torch.manual_seed(0)
mu, logvar = (torch.randn(5, 7, requires_grad=True) for _ in range(2))
target = torch.rand(5, 7)
for _ in range(3):
    found = []
    for backend in ("auto", "reference"):
        with vf.backend(backend):
            loss = step(mu, logvar, target)
            found.append([loss, *torch.autograd.grad(loss, (mu, logvar))])
    torch.testing.assert_close(*found)
z = vf.rsample(mu, logvar)
first = torch.autograd.grad(z.sum(), (mu, logvar), retain_graph=True)
torch.testing.assert_close(torch.autograd.grad(z.sum(), (mu, logvar)), first)
torch.testing.assert_close(
    torch.func.grad(step)(mu, logvar, target), torch.autograd.grad(step(mu, logvar, target), mu)[0]
)
large = torch.zeros(600, 600)
assert torch.isfinite(vf.rsample(large, large)).all()
loss = vf.nll(mu, target, "bernoulli", reduction="sample")
nothing = torch._efficientzerotensor(loss.shape)
assert not torch.autograd.grad(loss, mu, nothing)[0].any()
if name == "has_static_value":
    compiled = torch.compile(step, fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(mu, logvar, target), step(mu, logvar, target))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_IMPORT + AT_CALLS)
def test_without_it_results_are_right(name):
    command = python(PROGRAM, name)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_stream_without_its_quick_way(monkeypatch):
    class Stream:
        cuda_stream = 7

    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream", raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream)
    space: dict = {"__name__": "vaefast._torch", "__package__": "vaefast"}
    exec(compile(TEXT, "_torch.py", "exec"), space)
    assert space["raw_stream"](0) == 7


def test_no_other_file_uses_a_private_name():
    """Of torch's modules, or of its tensors and functions."""
    of_tensors = {"_is_zerotensor", "_backward_cls", "_is_view", "_base"}
    for path in SOURCES.rglob("*.py"):
        if path.name == "_torch.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            whole = ast.unparse(node)
            private = re.match(r"torch(\.\w+)*\._[a-z_C]", whole) and "__" not in whole
            assert not private and node.attr not in of_tensors, f"{path.name}: {whole}"
