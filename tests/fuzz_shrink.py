"""A failing case made small: settings dropped, sizes and layouts simplified while it still fails,
and then written as a script that needs nothing but torch and the library."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import fuzz_user
import torch
from fuzz_cases import CALLS, Case
from fuzz_check import (
    Failure,
    Prepared,
    Seeded,
    fresh,
    leaves_of,
    prepare,
    spoilt,
    true_values,
    upstreams,
)
from fuzz_operators import OPERATORS
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods

_OPTIONAL = (
    "mask", "weight", "sample_weight", "prior_mu", "prior_scale", "prior", "log_prior", "log_det",
    "z_flow", "log_weights", "beta", "b0", "b1", "b2",
)  # fmt: skip


def shrunk(case: Case, fails: Callable[[Case], bool], most: int = 400) -> Case:
    """The smallest case found that fails alike, by at most `most` tries."""
    tries = 0
    going = True
    while going and tries < most:
        going = False
        for smaller in simpler(case):
            tries += 1
            if tries > most:
                break
            if fails(smaller):
                case, going = smaller, True
                break
    return case


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler in one respect, the large steps first."""

    def changed(change: Callable[[Case], None]) -> Case:
        other = copy.deepcopy(case)
        change(other)
        return other

    def put(**values: Any) -> Callable[[Case], None]:
        return lambda c: vars(c).update(values)

    if case.backward != "plain":
        yield changed(put(backward="plain"))
    if case.hidden:
        yield changed(put(hidden=()))
    if case.grid:
        yield changed(put(grid=False))
    operands = case.operands
    if any(o.layout != "dense" for o in operands.values()):
        yield changed(lambda c: [setattr(o, "layout", "dense") for o in c.operands.values()])
    floats = [o for o in operands.values() if o.floating()]
    if any(o.dtype != torch.float32 for o in floats):
        yield changed(
            lambda c: [
                setattr(o, "dtype", torch.float32) for o in c.operands.values() if o.floating()
            ]
        )
    for name in _OPTIONAL:
        if name in operands:
            yield changed(lambda c, n=name: c.operands.pop(n))
    for key in case.settings:
        yield changed(lambda c, k=key: c.settings.pop(k))
    if "num_samples" in case.settings and "noise" in operands:
        yield changed(_without_samples)
    if case.model is not None:
        for key in case.model[1]:
            yield changed(lambda c, k=key: c.model[1].pop(k))
    if case.noise not in ("", "seed", "noise"):
        yield changed(put(noise="seed"))
    if case.noise == "noise":
        yield changed(lambda c: (put(noise="seed")(c), c.operands.pop("noise", None)))
    for name, size in case.dims.items():
        if name[0] in "DXLK" and len(name) > 1:
            yield changed(lambda c, n=name: _without(c, n))
        for less in dict.fromkeys((1, 2, size // 2, size - 1)):
            if 0 < less < size:
                yield changed(lambda c, n=name, v=less: c.dims.update({n: v}))
    for i, way in enumerate(case.upstream):
        for plainer in ("none", "ones", "dense"):
            if way == plainer:
                break
            ways = (*case.upstream[:i], plainer, *case.upstream[i + 1 :])
            yield changed(put(upstream=ways))
    for name, operand in operands.items():
        for key, value in (("layout", "dense"), ("grad", False), ("leaf", True), ("scale", 1.0)):
            if getattr(operand, key) != value:
                yield changed(lambda c, n=name, k=key, v=value: setattr(c.operands[n], k, v))
        if operand.floating() and operand.dtype != torch.float32:
            yield changed(lambda c, n=name: setattr(c.operands[n], "dtype", torch.float32))


def _without(case: Case, dim: str) -> None:
    case.dims.pop(dim)
    for operand in case.operands.values():
        operand.shape = tuple(d for d in operand.shape if d != dim)


def _without_samples(case: Case) -> None:
    case.settings.pop("num_samples")
    case.operands["noise"].shape = case.operands["noise"].shape[1:]


_HEAD = '''\
"""{title}"""

import torch
from torch import inf, nan

import vaefast as vf


def tensor(values, dtype, size, stride, start, grad=False):
    """A view of a storage of these values."""
    storage = torch.tensor(values, dtype=getattr(torch, dtype))
    return storage.as_strided(size, stride, start).detach().requires_grad_(grad)

'''


def script(case: Case, failure: Failure) -> str:
    """A script that shows the failure."""
    data = prepare(case)
    title = f"{case.op}: {failure.what}, {failure.how} (seed {case.seed})"
    lines = [_HEAD.format(title=title.replace('"', "'"))]
    if case.model is not None and case.model[0] == "fuzz_rayleigh":
        lines.append(inspect.getsource(fuzz_user) + "\n")
    lines.append("# The operands of each call: shapes and strides are the same, the data fresh.\n")
    lines.append("calls = [\n")
    for call in data.calls:
        body = "".join(f"        {n!r}: {_tensor(t, case, n)},\n" for n, t in call.items())
        lines.append("    {\n" + body + "    },\n")
    lines.append("]\n")
    expression = _expression(case, data)
    lines.append("# What is right, in float64: values, then gradients.\nwanted = [\n")
    names = leaves_of(case)
    rows, wanted = _wanted(case, data, failure.what)
    lines += [f"    {w},\n" for w in wanted]
    lines.append("]\n")
    lines.append(f"upstreams = [\n{''.join(f'    {r},' + chr(10) for r in rows)}]\n")
    lines.append("for number, t in enumerate(calls):\n")
    for before in expression.before:
        lines.append(f"    {before}\n")
    indent = "    "
    if case.backward == "hooks":
        lines.append(
            "    # What moves tensors away and back, as offloading does: a view comes back dense.\n"
            "    with torch.autograd.graph.saved_tensors_hooks(lambda s: s.clone(), lambda s: s):\n"
        )
        indent = "        "
    if case.backward == "checkpoint":
        lines.append(
            "    def call(*leaves):\n"
            f"        t.update(zip({names}, leaves))\n"
            f"        return {expression.code}\n"
            "    from torch.utils.checkpoint import checkpoint\n"
            f"    out = checkpoint(call, *[t[n] for n in {names}], use_reentrant=False)\n"
        )
    else:
        lines.append(f"{indent}out = {expression.code}\n")
    lines.append("    out = (out,) if isinstance(out, torch.Tensor) else tuple(out)\n")
    lines.append("    got = {f'value {i}': o for i, o in enumerate(out)}\n")
    if names:
        lines.append(
            "    pairs = [(o, u) for o, u in zip(out, upstreams[number])\n"
            "             if u is not None and o.requires_grad]\n"
            f"    leaves = [t[n] for n in {names}]\n"
            "    outs, ups = zip(*pairs)\n"
        )
        if case.backward == "twice":
            lines.append(
                "    torch.autograd.grad(outs, leaves, ups, allow_unused=True, retain_graph=True)\n"
            )
        lines.append(
            "    grads = torch.autograd.grad(outs, leaves, ups, allow_unused=True)\n"
            f"    got |= {{f'gradient of {{n}}': g for n, g in zip({names}, grads)}}\n"
        )
    lines.append("    for name, want in wanted[number].items():\n")
    lines.append("        print(number, name, got[name] if got[name] is None else "
                 "got[name].tolist(), 'wanted', want)\n")  # fmt: skip
    return "".join(lines)


class _Code:
    def __init__(self, code: str, before: list[str]) -> None:
        self.code, self.before = code, before


def _tensor(t: Tensor, case: Case, name: str) -> str:
    if t.layout != torch.strided:
        return f"torch.tensor({t.to_dense().tolist()}, dtype={t.dtype}).to_sparse_csr()"
    plain = t.detach()
    if plain.is_neg():
        stored = _literal(torch._neg_view(plain))
        return f"torch._neg_view({stored}).detach().requires_grad_({case.operands[name].grad})"
    return _literal(plain, case.operands[name].grad)


def _literal(t: Tensor, grad: bool = False) -> str:
    """The storage's values and the view of it."""
    flat = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    kind = str(t.dtype).removeprefix("torch.")
    end = ", True" if grad else ""
    size, stride = tuple(t.shape), tuple(t.stride())
    return f"tensor({flat.tolist()}, {kind!r}, {size}, {stride}, {t.storage_offset()}{end})"


def _wanted(case: Case, data: Prepared, what: str) -> tuple[list[str], list[str]]:
    outputs = OPERATORS[case.op].truth(case, data.wide)
    shapes = [o.shape[1:] for o in outputs]
    try:
        data.before[0]()
        like = OPERATORS[case.op].call(case, data.calls[0], fresh(data.noise[0]))
    except Exception:
        like = tuple(o[0].float() for o in outputs)
    rows = upstreams(case, like, shapes)
    found = true_values(case, data.wide, rows)
    wanted = []
    for i in range(CALLS):
        values = {f"value {k}": o[i].tolist() for k, o in enumerate(found.outputs)}
        values |= {f"gradient of {n}": g[i].tolist() for n, g in found.gradients.items()}
        if what in values:
            values = {what: values[what]}
        wanted.append(repr(values))
    codes = []
    for i, row in enumerate(rows):
        row = spoilt(case, data, row, i)
        each = ("None" if u is None else _literal(u.detach()) for u in row)
        codes.append(f"[{', '.join(each)}]")
    return codes, wanted


def _expression(case: Case, data: Prepared) -> _Code:
    """The call as code, of the operands `t`."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    original = getattr(vf, case.op)

    def record(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        raise _Recorded

    setattr(vf, case.op, record)
    noise = []
    try:
        for call, given in zip(data.calls, data.noise, strict=True):
            try:
                OPERATORS[case.op].call(case, call, given)
            except _Recorded:
                noise.append(given)
    finally:
        setattr(vf, case.op, original)
    args, kwargs = seen[0]
    names = {id(t): n for n, t in data.calls[0].items()}
    before, changing = [], {}
    for key in ("seed", "generator"):
        if key in noise[0]:
            before.append(f"{key} = {[_plain(n[key]) for n in noise]}[number]".replace("'", ""))
            changing[key] = key
    if case.noise == "drawn":
        seeds = [b.args[0] for b in data.before]
        before.append(f"torch.manual_seed({seeds}[number])")
    parts = [_code(a, names) for a in args]
    parts += [f"{k}={changing.get(k) or _code(v, names)}" for k, v in kwargs.items()]
    return _Code(f"vf.{case.op}({', '.join(parts)})", before)


class _Recorded(Exception):
    pass


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"torch.tensor({value.tolist()}, dtype=torch.int64).reshape({tuple(value.shape)})"
    if isinstance(value, Seeded):
        return f"torch.Generator().manual_seed({value.seed})"
    if isinstance(value, list) and value and isinstance(value[0], Seeded):
        return [_plain(v) for v in value]
    return value


def _code(value: Any, names: dict[int, str]) -> str:
    if isinstance(value, Tensor):
        return f't["{names[id(value)]}"]'
    if isinstance(value, tuple):
        return "(" + "".join(f"{_code(v, names)}, " for v in value) + ")"
    if isinstance(value, likelihoods.Likelihood):
        given = [
            f"{f.name}={_code(getattr(value, f.name), names)}"
            for f in fields(value)  # type: ignore[arg-type]
            if getattr(value, f.name) is not f.default
        ]
        home = "" if type(value).__module__ == "fuzz_user" else "vf."
        return f"{home}{type(value).__name__}({', '.join(given)})"
    return repr(value)
