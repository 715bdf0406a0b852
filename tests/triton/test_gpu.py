"""Runs the kernels' checks compiled, where there is a GPU."""

import pytest
import torch

pytest.importorskip("triton.language")

# Without a GPU not collected at all: its skips would hide the ones that matter.
if torch.cuda.is_available():
    from count_checks import *  # noqa: F403
    from edge_checks import *  # noqa: F403
    from hardware_checks import *  # noqa: F403
    from kernel_checks import *  # noqa: F403
    from row_checks import *  # noqa: F403

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
