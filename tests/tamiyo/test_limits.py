"""What no policy may do, by a table."""

from __future__ import annotations

import math

import pytest

from tests.tamiyo.packets import packet, seed
from tolaria_bus.leyline import AdaptationCommand
from tolaria_bus.leyline.codec import from_json
from tolaria_bus.tamiyo import Limits

GERMINATE = '{"commandType": "SEED", "seedOperation": {"operation": "GERMINATE"}}'
CULL = '{"commandType": "SEED", "seedOperation": {"operation": "CULL"}}'
GRAFT = '{"commandType": "SEED", "seedOperation": {"operation": "START_GRAFTING"}}'
RATE = '{"commandType": "LEARNING_RATE", "learningRate": %s}'
NOW = packet(9, 1.0)
SPENT = packet(9, 1.0, interventions=200.0)


@pytest.mark.parametrize(
    ("text", "now", "why"),
    [
        ('{"commandType": "CONTINUE"}', SPENT, ""),
        ('{"commandType": "PAUSE"}', SPENT, ""),
        ('{"commandType": "EMERGENCY", "emergency": {"level": "NOTICE"}}', SPENT, ""),
        (CULL, SPENT, ""),
        (GRAFT, SPENT, "200 interventions are used up"),
        (RATE % '{"factor": 0.5}', SPENT, "200 interventions are used up"),
        ('{"commandType": "STOP"}', NOW, "may not say STOP"),
        ('{"commandType": "RESUME"}', NOW, "may not say RESUME"),
        ("{}", NOW, "may not say UNKNOWN"),
        (GERMINATE, NOW, ""),
        (GERMINATE, packet(9, 1.0, seed("TRAINING", "a"), seed("BLENDING", "b")), "2 seeds"),
        (GERMINATE, packet(9, 1.0, seed("FOSSILIZED", "a"), seed("CULLED", "b")), ""),
        (GERMINATE, packet(9, 1.0, seed=0.0), "0 epochs ago"),
        (GRAFT, packet(9, 1.0, seed=0.0), ""),
        (RATE % '{"factor": 0.25}', NOW, ""),
        (RATE % '{"factor": 0.2}', NOW, "a rate times 0.2; allowed: 0.25 to 4"),
        (RATE % '{"factor": 5}', NOW, "a rate times 5"),
        (RATE % '{"factor": "NaN"}', NOW, "a rate times nan"),
        (RATE % '{"factor": -1}', NOW, "a rate times -1"),
        (RATE % '{"learningRate": 0.2}', NOW, ""),
        (RATE % '{"learningRate": 1.0}', NOW, "a rate times 10"),
        (RATE % '{"learningRate": 0.1, "group": "nobody"}', NOW, "a rate times nan"),
        (RATE % '{"factor": 0.5}', packet(9, 1.0, learning_rate=0.0), "0 epochs ago"),
        ('{"commandType": "OPTIMIZER", "optimizerAdjustment": {"values": {"lr": 1}}}', NOW, "rate"),
        ('{"commandType": "OPTIMIZER", "optimizerAdjustment": {"values": {"eps": 1}}}', NOW, ""),
    ],
)
def test_what_goes_too_far_is_named(text: str, now, why: str) -> None:
    refused = Limits().refuses(from_json(text, AdaptationCommand), now)
    assert why in refused
    assert bool(refused) == bool(why)


@pytest.mark.parametrize(
    "limits", [{"seeds": -1}, {"interventions": -1}, {"lr_change": 0.5}, {"lr_change": math.inf}]
)
def test_limits_out_of_range_are_refused(limits) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)
