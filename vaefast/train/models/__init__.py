"""The models that `vaefast train` trains, by their names; each is a file, and so is one of yours.

```python
from vaefast.train.models import Model, register

@register("mine")
class Mine(Model): ...
```
"""

from ._base import Draw, Estimator, Model, build, register, registered, settings_of
from ._full_covariance import FullCovarianceVAE
from ._hierarchical import HierarchicalVAE
from ._vae import VAE
from ._vamp import VampVAE
from .backbones import Sizes, backbones, register_backbone
from .head import Head

__all__ = [
    "VAE",
    "Draw",
    "Estimator",
    "FullCovarianceVAE",
    "Head",
    "HierarchicalVAE",
    "Model",
    "Sizes",
    "VampVAE",
    "backbones",
    "build",
    "register",
    "register_backbone",
    "registered",
    "settings_of",
]
