"""Runs tests with the CUDA kernels on the CPU: `python emulated.py <module _C> <pytest arguments>`.

The module is built with VAEFAST_CUDA=emulate: the same kernels, whose threads are the CPU's
(csrc/cuda/emulated.h). Here its GPU entry points stand in for those of the CPU.
"""

import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch

# A workspace that is written past its end shows it.
GUARD = 64


def load(path: str) -> types.ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("vaefast._C", path)
    spec = importlib.util.spec_from_loader("vaefast._C", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def emulated(core: types.ModuleType) -> types.ModuleType:
    """`core` with calls on a GPU wherever Python asks for threads of the CPU."""
    module = types.ModuleType("vaefast._C")
    for name in dir(core):
        setattr(module, name, getattr(core, name))
    module.available_capabilities = lambda: ["default"]

    def run(name, args, size):
        """A kernel, whose last argument says where it runs; `size`: of its workspace, of the
        others."""
        bytes_there = size(*args[:-1])
        workspace = torch.full((bytes_there + GUARD,), 0xFF, dtype=torch.uint8)
        getattr(core, name)(*args[:-1], (0, 0, workspace.data_ptr(), bytes_there))
        assert (workspace[bytes_there:] == 0xFF).all(), "written past the workspace"

    def on_gpu(prepared, size):
        """A prepared call, whose first argument says where it runs; `size` of its workspace, of the
        other arguments."""

        def call(_, *given):
            bytes_there = size(*given)
            workspace = torch.full((bytes_there + GUARD,), 0xFF, dtype=torch.uint8)
            prepared((0, 0, workspace.data_ptr(), bytes_there), *given)
            assert (workspace[bytes_there:] == 0xFF).all(), "written past the workspace"

        return call

    def prepare_sample_kl(*args):
        grid, reduce = args[0], args[5][7]
        size = core.workspace(grid, reduce, False, grid[0]) if reduce > 1 else 0
        forward, backward = core.prepare_sample_kl(*args)
        return on_gpu(forward, lambda *_: size), on_gpu(backward, lambda *_: 0)

    def prepare_nll(*args):
        grid = args[0]
        scalar, target_rows, reduce = args[6][2:5]

        def size(loss, target, params, grads, others):
            scalar_grad = scalar >= 0 and len(grads) > scalar and grads[scalar] is not None
            if reduce <= 1 and not scalar_grad:
                return 0
            return core.workspace(grid, reduce, scalar_grad, target_rows)

        forward, scale = core.prepare_nll(*args)
        return on_gpu(forward, size), on_gpu(scale, lambda *_: 0)

    for name in core.kernels():
        if hasattr(core, name):
            size = getattr(core, f"{name}_workspace", lambda *_: 0)
            setattr(module, name, lambda *args, name=name, size=size: run(name, args, size))
    # Those that are prepared.
    module.prepare_nll = prepare_nll
    module.prepare_sample_kl = prepare_sample_kl
    return module


def install(module: types.ModuleType) -> None:
    """Puts `module` in the place of vaefast's core."""
    sys.modules["vaefast._C"] = module
    import vaefast
    from vaefast.backends.native import sample_kl

    vaefast._C = module
    # On a GPU the noise is always made anew, and a broadcast prior's gradients are summed by torch.
    sample_kl.keeps_derivative = lambda *args: False
    sample_kl.sums_broadcast = lambda *args: False


if __name__ == "__main__":
    install(emulated(load(sys.argv[1])))
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
