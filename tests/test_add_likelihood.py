"""A likelihood is added in the places that CONTRIBUTING.md lists and in no other: a copy of the
tree gets one there, and it is served, exported and walked by the tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from program import python

import vaefast as vf
from vaefast import likelihoods

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir() or not (ROOT / "CONTRIBUTING.md").exists(),
    reason="the sources are not here",
)

FAMILY = "location"
# A logistic around a location: a name that the library has not.
CLASS = '''

@register("logistic_density")
@dataclass(frozen=True, eq=False)
class LogisticDensity(Likelihood):
    """p(x) = e^-d / (1 + e^-d)^2 with d = x - loc."""

    param_names: ClassVar[tuple[str, ...]] = ("loc",)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1)
        return Form("logistic_density", params, ())

    def mean(self, params: Params) -> Tensor:
        return as_tuple(params)[0]

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        u = noise("uniform")
        return params[0] + torch.log(u) - torch.log1p(-u.clamp(max=1 - 2**-24))
'''
FORMULA = '''

@location_formula
def logistic_density(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """softplus(d) + softplus(-d)."""
    distance = x - params[0]
    return F.softplus(distance) + F.softplus(-distance)
'''
FUNCTOR = """
// theta: loc.
template <class T>
struct logistic_density {
  static constexpr int kParams = 1;
  explicit logistic_density(const double*) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T d = theta[0] - x;
    const T e = exp_nonpositive(-abs(d));
    const T slope = (T(1) - e) / (T(1) + e);
    if constexpr (kGrad) grad[0] = d < T(0) ? -slope : slope;
    return abs(d) + T(2) * log1p_unit(e);
  }
};

}  // namespace VAEFAST_ISA
"""
TRITON = """

@form
@triton.jit
def logistic_density(x, theta, numbers):
    d = theta[0] - x
    e = tl.exp(-tl.abs(d))
    slope = (1.0 - e) / (1.0 + e)
    return tl.abs(d) + 2.0 * log1p(e), tl.where(d < 0.0, -slope, slope)
"""


def listed() -> list[str]:
    """The paths of CONTRIBUTING's numbered list."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Add a likelihood\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def test_the_list_is_short_and_true() -> None:
    assert len(listed()) == 4
    for family in ("bernoulli", "counts", "location", "pixels"):
        for path in listed():
            assert (ROOT / path.replace("<family>", family)).is_file(), (path, family)


def test_families_have_one_name_in_every_room() -> None:
    """Whatever a likelihood's family in Python is, its form is in that family's file elsewhere."""
    home, formulas, functors, kernels = (ROOT / path for path in listed())
    for name, cls in likelihoods.registered().items():
        if not cls.__module__.startswith("vaefast."):
            continue
        family = cls.__module__.rpartition("._")[2]
        assert Path(str(home).replace("<family>", family)).is_file()
        for room in (formulas, functors, kernels):
            text = Path(str(room).replace("<family>", family)).read_text()
            assert re.search(rf"(def|struct) {name}(_fixed)?\b", text), (name, room)


def add_it(tree: Path) -> None:
    home, formulas, functors, kernels = (tree / p.replace("<family>", FAMILY) for p in listed())
    text = home.read_text()
    home.write_text(text.replace("__all__ = [", '__all__ = ["LogisticDensity", ') + CLASS)
    formulas.write_text(formulas.read_text() + FORMULA)
    kernels.write_text(kernels.read_text() + TRITON)
    text = functors.read_text()
    last = re.findall(r"  X\((\w+)\)", text)[-1]
    text = text.replace(f"  X({last})", f"  X({last}) \\\n  X(logistic_density)")
    functors.write_text(text.replace("\n}  // namespace VAEFAST_ISA\n", FUNCTOR))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout has, with the likelihood."""
    copy = tmp_path_factory.mktemp("tree")
    leave = shutil.ignore_patterns("__pycache__", "build", "*.o")
    for name in ("vaefast", "csrc", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for package in Path(vf.__file__).parent.glob("_C*.so"):
        shutil.copy2(package, copy / "vaefast")
    add_it(copy)
    return copy


def run(tree: Path, code: str, **environment: str) -> str:
    """What a program prints that imports the copy."""
    found = os.environ | {"PYTHONPATH": str(tree)} | environment
    done = subprocess.run(
        python(code),
        capture_output=True,
        text=True,
        env=found,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


SERVED = """
import os, torch, vaefast as vf
assert vf.__file__.startswith(os.environ["PYTHONPATH"]), vf.__file__
loc, x = torch.linspace(-3, 3, 40).view(5, 8).requires_grad_(), torch.linspace(2, -1, 40).view(5, 8)
found = []
for name in {names}:
    with vf.backend(name):
        loss = vf.nll(loc, x, vf.LogisticDensity())
        found.append((loss, *torch.autograd.grad(loss, loc)))
        assert "logistic_density" in vf.likelihoods.registered()
for loss, grad in found[1:]:
    torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, found[0][1], rtol=1e-5, atol=1e-6)
d = torch.distributions.TransformedDistribution(
    torch.distributions.Uniform(0, 1), [torch.distributions.SigmoidTransform().inv]
)
want = -d.log_prob(x - loc.detach()).sum(1).mean()
torch.testing.assert_close(found[0][0].detach(), want, rtol=1e-5, atol=1e-6)
print("served by", len(found))
"""


def test_the_reference_and_triton_serve_it(tree: Path) -> None:
    names = ["reference"]
    if importlib.util.find_spec("triton") is not None:
        names.append("triton")
    code = SERVED.replace("{names}", repr(tuple(names)))
    assert f"served by {len(names)}" in run(tree, code, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_native_core_serves_it_and_the_tests_walk_it(tree: Path) -> None:
    from test_cuda_build import build

    folder = tree / "build"
    module = build(folder, "0", "-DVAEFAST_ISAS=default", source=tree / "csrc")
    for old in (tree / "vaefast").glob("_C*.so"):
        old.unlink()
    shutil.copy2(module, tree / "vaefast")
    code = SERVED.replace("{names}", repr(("reference", "native")))
    assert "served by 2" in run(tree, code)
    # Tests without a new line: the copy is what they import, and they know its likelihood.
    walk = ("test_likelihoods", "test_kinks", "test_validation", "test_extremes")
    options = ("-q", "-p", "no:cacheprovider", "--full", "-k", "logistic_d")
    command = [*python("import pytest; sys.exit(pytest.main(sys.argv[1:]))"), *options]
    found = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [*command, *(f"tests/{name}.py" for name in walk)],
        capture_output=True,
        text=True,
        cwd=tree,
        env=found,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 10, done.stdout[-2000:]


def test_torch_agrees_about_the_logistic() -> None:
    """The formula above, against the derivative of the distribution function."""
    d = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    (density,) = torch.autograd.grad(torch.sigmoid(d).sum(), d)
    ours = torch.nn.functional.softplus(d) + torch.nn.functional.softplus(-d)
    torch.testing.assert_close(ours, -torch.log(density))
