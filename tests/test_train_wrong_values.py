"""Whatever a setting is given, it is taken, or named in one line before anything is trained."""

import numpy as np
import pytest
import torch
import yaml

from vaefast.train import InputError, models, objectives, settings
from vaefast.train.data import Samples
from vaefast.train.models.head import likelihood_names
from vaefast.train.run import described

VALUES = [
    *(None, True, -1, 0, 0.5, 3, "abc", "", [], {}, [1, 2], float("nan"), float("inf"), 1e30),
    *(-(10**30), "1e-3"),
]
NUMBERS = np.random.default_rng(0)
IMAGES = torch.from_numpy(NUMBERS.random((30, 1, 4, 4)).astype(np.float32))
PIXELS = torch.from_numpy(NUMBERS.integers(0, 256, (30, 3, 4, 4)).astype(np.uint8))
COUNTS = torch.from_numpy(NUMBERS.poisson(2.0, (30, 6)).astype(np.float32))
DATA = {
    **dict.fromkeys(["discretized_logistic", "discretized_logistic_mixture"], PIXELS),
    **dict.fromkeys(["poisson", "negative_binomial", "zero_inflated_negative_binomial"], COUNTS),
    **dict.fromkeys(["multinomial", "categorical"], COUNTS),
}


def every_setting():
    for section in ("data", "training"):
        yield from ((section, None, name) for name in settings.known(section, None))
    for section, names in (
        ("likelihood", likelihood_names()),
        ("objective", objectives.registered()),
        ("model", models.registered()),
    ):
        for of in names:
            yield from ((section, of, name) for name in settings.known(section, of))


def taken(section, of, name, value):
    """The settings with this one, whose model takes a step; None where it is refused."""
    given = {section: {name: value} if of is None else {"name": of, name: value}}
    samples = Samples(DATA.get(of, IMAGES))
    try:
        found = settings.merged(given)
        config = described(found, samples)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert name in str(error) or section in str(error) or str(of) in str(error), error
        return None
    model, objective = models.build(**config["model"]), objectives.build(**config["objective"])
    loss = objective(model, samples[:3], objectives.Step(seed=0)).loss
    loss.backward()
    if value is not None and section in ("likelihood", "objective"):
        # What is not of the setting's kind is not taken for it.
        assert isinstance(found[section][name], kinds(section, of, name)), value
    assert yaml.safe_load(settings.to_yaml(found)) == found
    return found


def kinds(section, of, name):
    default = settings.known(section, of)[name][1]
    return {bool: bool, int: int, float: (float, int), str: str}.get(type(default), object)


@pytest.mark.parametrize(("section", "of", "name"), list(every_setting()))
def test_a_value_is_taken_or_named(section, of, name):
    for value in VALUES:
        taken(section, of, name, value)
