"""The objectives that `vaefast train` trains by, by their names; each is a file, and so is one of
yours.

```python
from dataclasses import dataclass
from vaefast.train.objectives import Loss, Objective, register

@register("mine")
@dataclass(frozen=True)
class Mine(Objective):
    weight: float = 1.0

    def __call__(self, model, x, step): ...
```
"""

from ._base import Loss, Objective, Step, build, register, registered
from ._elbo import ELBO, Autoencoder
from ._importance import IWAE, DReG
from ._mmd import WAE, InfoVAE
from ._tc import BetaTCVAE
from .eager import HAS_EAGER, eager_loss, eager_nll, eager_sample_kl
from .measure import autoencoder_loss, held_out_elbo, step_loss

__all__ = [
    "ELBO",
    "HAS_EAGER",
    "IWAE",
    "WAE",
    "Autoencoder",
    "BetaTCVAE",
    "DReG",
    "InfoVAE",
    "Loss",
    "Objective",
    "Step",
    "autoencoder_loss",
    "build",
    "eager_loss",
    "eager_nll",
    "eager_sample_kl",
    "held_out_elbo",
    "register",
    "registered",
    "step_loss",
]
