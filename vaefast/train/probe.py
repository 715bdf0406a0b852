"""How much of the labels a representation holds: a linear classifier on few of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data import Split


class Probe(NamedTuple):
    """Held-out accuracy, mean and standard deviation over the draws of labels."""

    mean: float
    std: float


def linear_probe(features: Split, labels: Split, *, count: int = 50, draws: int = 10) -> Probe:
    """Accuracy of a logistic regression on `count` labelled samples, as many of each class.

    `draws` subsets of the training set are tried, the same ones for every representation.

    Args:
        features: `[N, ...]`.
        labels: `[N]`.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = (f.detach().cpu().flatten(1).double() for f in features)
    # One scale for all features: each by its own would blow up the dimensions that carry nothing.
    scale = train.std().clamp(min=1e-12)
    train, test = train / scale, test / scale
    scores = []
    for draw in range(draws):
        rows = _subset(labels.train, count, draw)
        model = LogisticRegression(max_iter=1000)
        model.fit(train[rows].numpy(), labels.train[rows].numpy())
        scores.append(model.score(test.numpy(), labels.held_out.numpy()))
    return Probe(float(np.mean(scores)), float(np.std(scores)))


def _subset(labels: Tensor, count: int, seed: int) -> Tensor:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = labels.unique()
    each = count // len(classes)
    return torch.cat([order[labels[order] == c][:each] for c in classes])
