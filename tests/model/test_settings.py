"""Settings of a run: plain values, and what they must be."""

import json
import math
import tomllib
from dataclasses import replace

import pytest

from skycairn.model.settings import Settings
from skycairn.model.strata import Weights

TOML = """
steps = 6
learning_rate = 3e-3
warm_up = 2
keep = 3
keep_every = 500
compile = true
[weights]
matched = 3.0
power = 0.5
"""


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"size": "huge"}, "size is 'huge'; choose one of nano"),
        ({"steps": 0}, "steps is 0; wanted a whole number of 1 or more"),
        ({"steps": True}, "steps is True"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of fp32, bf16"),
        ({"learning_rate": math.nan}, "learning_rate is nan; wanted a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; wanted a number above 0"),
        ({"betas": [0.9, 1.0]}, r"betas is \[0.9, 1.0\]; wanted two numbers"),
        ({"betas": 0.9}, "betas is 0.9; wanted two numbers"),
        ({"least_rate": 2}, "least_rate is 2; wanted a number of 0 to 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; wanted"),
        ({"compile": 1}, "compile is 1; wanted true or false"),
        ({"tensorboard": "yes"}, "tensorboard is 'yes'; wanted true or false"),
        ({"keep": 0}, "keep is 0; wanted a whole number of 1 or more"),
        ({"keep": 3}, "keep is 3 and keep_every 0; wanted both, such as"),
        ({"keep_every": 100}, "keep is 1 and keep_every 100; wanted both"),
        ({"non_finite": "ignore"}, "non_finite is 'ignore'; choose one of stop, skip"),
        ({"most_skipped": -1}, "most_skipped is -1; wanted a whole number of 0 or more"),
        ({"directions_every": 0.5}, "directions_every is 0.5; wanted a whole number of 0 or more"),
        ({"stepz": 3}, "stepz: wanted some of size, steps"),
    ],
)
def test_settings_say_what_is_wrong(value: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Settings.from_json(value)


def test_settings_are_plain_values_and_back() -> None:
    settings = Settings(steps=6, learning_rate=3e-3, warm_up=2, weights=Weights(matched=3.0, power=0.5))
    assert Settings.from_json(tomllib.loads(TOML)) == replace(settings, keep=3, keep_every=500, compile=True)
    assert Settings.from_json(json.loads(json.dumps(settings.as_json()))) == settings
    rates = [settings.rate(step) for step in range(settings.steps)]
    assert rates[0] == pytest.approx(settings.learning_rate / 2) and max(rates) == pytest.approx(settings.learning_rate)
    assert rates[-1] < 0.3 * settings.learning_rate and min(rates) >= settings.least_rate * settings.learning_rate
