"""An install without a compiler: no native core, a stated reason, right answers all the same."""

import importlib.util
import json
from pathlib import Path

import torch

import vaefast as vf

assert importlib.util.find_spec("vaefast._C") is None, "this install has a native core"
record = json.loads((Path(vf.__file__).parent / "_build.json").read_text())
assert record["native"] is False and "compiler" in record["reason"], record
assert "native" not in vf.available_backends(), vf.available_backends()

mu = torch.randn(41, 7, requires_grad=True)
logvar = torch.randn(41, 7, requires_grad=True)
expected = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
z, kl = vf.sample_kl(mu, logvar)
torch.testing.assert_close(kl, expected)
(z.sum() + kl.sum()).backward()
assert mu.grad is not None and logvar.grad is not None
print(f"runs on the reference: {record['reason']}")
