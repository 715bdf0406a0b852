"""Random cases of `rsample`, `gaussian_kl`, `sample_kl` against float64, with gradients."""

from __future__ import annotations

import random
from typing import Any

import cases
import reference64
import torch
from tolerances import assert_close64, gradient_arithmetic
from torch import Tensor

import vaefast as vf

NAMES = ("mu", "scale", "prior_mu", "prior_scale")


class PosteriorCase:
    """Case number `number` of operator `op`."""

    def __init__(self, op: str, number: int) -> None:
        self.op = op
        self.rng = rng = random.Random(f"{op} {number}")
        self.shape = shape = rng.choice(cases.SHAPES)
        self.dtype = dtype = rng.choice(cases.DTYPES)
        self.param = param = rng.choice(cases.PARAMS)
        self.clamp = cases.clamp_for(param, rng)
        self.min_std = rng.choice([0.0, 0.1]) if param == "softplus" else 0.0

        def scale(shape: tuple[int, ...]) -> cases.Operand:
            values = cases.scale_values(param, cases.normal(shape, rng))
            return cases.operand(values, dtype, rng)

        self.operands = {
            "mu": cases.operand(cases.normal(shape, rng, 1.5), dtype, rng),
            "scale": scale(shape),
        }
        if op != "rsample":
            # One side alone, too: what stands in for the other is N(0, 1)'s.
            if rng.random() < 0.5:
                prior = cases.normal(cases.broadcasts(shape, rng), rng)
                self.operands["prior_mu"] = cases.operand(prior, dtype, rng, grad=0.7)
            if rng.random() < 0.5:
                self.operands["prior_scale"] = scale(cases.broadcasts(shape, rng))
        self.mask = self.weight = None
        self.reduction = "sample"
        if op != "rsample":
            self.mask, self.weight = cases.mask_and_weight(shape, rng, dtype)
            self.reduction = rng.choice(cases.REDUCTIONS)
        self.num_samples = rng.choice([None, None, 1, 3]) if op != "gaussian_kl" else None
        self.temperature = rng.choice([1.0, 1.0, 0.7, 0.0])
        self.offset = rng.choice([0, 0, 4, 5, 1234567, 2**34 + 2])
        self.how = rng.choice(["seed", "state", "seeds", "states", "noise"])
        self.seeds = [rng.getrandbits(64) for _ in range(max(shape[0], 1))]

    @property
    def compute(self) -> torch.dtype:
        wide = any(o.values.dtype == torch.float64 for o in self.operands.values())
        return torch.float64 if wide else torch.float32

    def noise(self) -> tuple[Tensor, dict[str, Any]]:
        """The noise in float64, and the arguments that ask for it."""
        single, count = self.compute == torch.float32, self.num_samples

        def drawn(seed: int | list[int]) -> Tensor:
            return reference64.noise(
                self.shape, seed, offset=self.offset, num_samples=count, single=single
            )

        one, many = self.seeds[0], self.seeds[: self.shape[0]]
        signed = [s - 2**64 if s >= 2**63 else s for s in self.seeds]
        if self.how == "seed":
            return drawn(one), {"seed": one, "offset": self.offset}
        if self.how == "state":
            # An offset of the state and one of the call add up.
            half = self.offset // 2
            state = torch.tensor([signed[0], half])
            return drawn(one), {"seed": state, "offset": self.offset - half}
        if self.how == "seeds":
            return drawn(many), {"seed": many, "offset": self.offset}
        if self.how == "states":
            rows = [[s, self.offset] for s in signed[: self.shape[0]]]
            state = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
            return drawn(many), {"seed": state}
        shape = self.shape if count is None else (count, *self.shape)
        values = cases.operand(cases.normal(shape, self.rng), self.dtype, self.rng, grad=0.0)
        given = values.tensor("cpu")
        return given.double(), {"noise": given}

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {
            "param": self.param,
            "clamp": self.clamp,
            "min_std": self.min_std,
        }
        if self.op != "rsample":
            given |= {"mask": self.mask, "weight": self.weight, "reduction": self.reduction}
        if self.op != "gaussian_kl":
            given |= {"num_samples": self.num_samples, "temperature": self.temperature}
        return given

    def truth(self, eps: Tensor) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """The operands by name, and [z, kl] where the operator gives them."""
        wide = {name: o.wide() for name, o in self.operands.items()}
        mu, scale = wide["mu"], wide["scale"]
        settings = {"param": self.param, "min_std": self.min_std}
        logvar = reference64.log_variance(scale, **settings, clamp=self.clamp)
        z = kl = None
        if self.op != "gaussian_kl":
            z = mu + self.temperature * (0.5 * logvar).exp() * eps
        if self.op != "rsample":
            prior = {}
            if "prior_mu" in wide:
                prior["prior_mu"] = wide["prior_mu"]
            if "prior_scale" in wide:
                prior["prior_logvar"] = reference64.log_variance(wide["prior_scale"], **settings)
            elements = reference64.kl(mu, logvar, **prior)
            elements = reference64.weighted(elements, self.mask, self.weight)
            kl = reference64.reduced(elements, self.reduction, self.mask)
        return wide, [z, kl]

    def result(
        self, tensors: dict[str, Tensor], device: str, extra: dict[str, Any]
    ) -> list[Tensor | None]:
        """[z, kl] by the library."""
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in {**self.arguments(), **extra, **tensors}.items()
        }
        out = getattr(vf, self.op)(moved.pop("mu"), moved.pop("scale"), **moved)
        if self.op == "sample_kl":
            return list(out)
        return [out, None] if self.op == "rsample" else [None, out]

    def upstream(self, outputs: list[Tensor]) -> list[Tensor]:
        """A gradient of each output: dense, or one number expanded, as `sum()` sends."""
        found = []
        for out in outputs:
            shape = tuple(out.shape)
            if self.rng.random() < 0.3:
                found.append(cases.normal((), self.rng).to(out.dtype).expand(shape))
            else:
                found.append(cases.normal(shape, self.rng).to(out.dtype))
        return found

    def check(self, device: str) -> None:
        """Compares values and gradients."""
        eps, extra = self.noise() if self.op != "gaussian_kl" else (torch.zeros(()), {})
        wide, want = self.truth(eps)
        tensors = {name: o.tensor(device) for name, o in self.operands.items()}
        got = self.result(tensors, device, extra)
        pairs = []
        for ours, truth in zip(got, want, strict=True):
            assert (ours is None) == (truth is None)
            if ours is not None:
                assert_close64(ours, truth, self.compute, slack=4)
                assert ours.requires_grad == truth.requires_grad
                pairs.append((ours, truth))
        z, kl = got
        if z is not None:
            assert z.dtype == tensors["mu"].dtype
        if kl is not None:
            assert kl.dtype == self.compute
        # Of both outputs, or of one alone.
        pairs = [p for p in pairs if p[0].requires_grad][self.rng.choice([0, 0, -1]) :]
        if pairs:
            self._check_gradients(pairs, tensors, wide)

    def _check_gradients(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        tensors: dict[str, Tensor],
        wide: dict[str, Tensor],
    ) -> None:
        names = [name for name, o in self.operands.items() if o.needs_grad]
        upstream = self.upstream([ours for ours, _ in pairs])
        ours = torch.autograd.grad(
            [o for o, _ in pairs],
            [tensors[n] for n in names],
            [u.to(o.device) for u, (o, _) in zip(upstream, pairs, strict=True)],
            allow_unused=True,
        )
        truth = torch.autograd.grad(
            [t for _, t in pairs],
            [wide[n] for n in names],
            [u.double() for u in upstream],
            allow_unused=True,
        )
        for name, one, two in zip(names, ours, truth, strict=True):
            if one is None or two is None:
                present = one if one is not None else two
                assert present is None or not present.any(), f"gradient in {name} is missing"
                continue
            assert one.dtype == tensors[name].dtype
            try:
                assert_close64(one, two, gradient_arithmetic(one), slack=4)
            except AssertionError as error:
                raise AssertionError(f"gradient in {name}: {error}") from None
