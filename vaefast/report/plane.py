"""A 2-D map of the latent space: by UMAP where it is installed, by t-SNE elsewhere."""

from __future__ import annotations

import warnings

import numpy as np
from torch import Tensor


def plane(mu: Tensor) -> tuple[np.ndarray, str]:
    """Points `[N, 2]` from means `[N, D]`, and what they are."""
    values = mu.numpy()
    if mu.shape[1] == 1:
        return np.concatenate([values, np.zeros_like(values)], 1), "the one dimension"
    if mu.shape[1] == 2:
        return values, "the two dimensions as they are"
    try:
        from umap import UMAP
    # Another package has this name, too.
    except ImportError:
        return _by_tsne(values), "t-SNE"
    with warnings.catch_warnings():
        # With a seed of its own it uses one thread, and says so.
        warnings.simplefilter("ignore")
        reducer = UMAP(random_state=0, n_neighbors=min(15, len(values) - 1))
        return np.asarray(reducer.fit_transform(values)), "UMAP"


def _by_tsne(values: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(
        values
    )
    return np.asarray(found)
