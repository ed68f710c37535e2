"""Words of a command line become commands; what could mean nothing is refused in one line."""

import math
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.cli import compose_command as compose
from tolaria_bus.cli.circumstances import Circumstances, annotate, priority
from tolaria_bus.cli.words import ComposeError, assignments, parse_value
from tolaria_bus.leyline import AdaptationCommand, CommandType, MessagePriority
from tolaria_bus.leyline.codec import decode, encode, to_json

NOW_NS = 1_700_000_000_000_000_000
PLAIN = Circumstances(command_id="c1", issued_by="operator/ann", issued_at_ns=NOW_NS)


def as_plain(command: AdaptationCommand) -> object:
    """The command as JSON, after a trip over the wire."""
    return orjson.loads(to_json(decode(encode(command), AdaptationCommand)))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (compose.simple("pause"), {"commandType": "PAUSE"}),
        (compose.simple("resume"), {"commandType": "RESUME"}),
        (compose.simple("stop"), {"commandType": "STOP"}),
        (compose.checkpoint(), {"commandType": "CHECKPOINT", "checkpoint": {}}),
        (
            compose.checkpoint("before lunch", pin=True),
            {"commandType": "CHECKPOINT", "checkpoint": {"pin": True, "label": "before lunch"}},
        ),
        (compose.rollback(), {"commandType": "ROLLBACK", "rollbackPayload": {}}),
        (
            compose.rollback(to_step=0, data="replay", lr_factor=0.5),
            {
                "commandType": "ROLLBACK",
                "rollbackPayload": {"target_step": 0.0, "data": "replay", "lr_factor": 0.5},
            },
        ),
        (
            compose.rollback(to_epoch=3),
            {"commandType": "ROLLBACK", "rollbackPayload": {"target_epoch": 3.0}},
        ),
        (
            compose.learning_rate(0.01),
            {"commandType": "LEARNING_RATE", "learningRate": {"learningRate": 0.01}},
        ),
        (
            compose.learning_rate(0.0),
            {"commandType": "LEARNING_RATE", "learningRate": {"learningRate": 0.0}},
        ),
        (
            compose.learning_rate(factor=0.5, warmup_steps=100, group="host"),
            {
                "commandType": "LEARNING_RATE",
                "learningRate": {"factor": 0.5, "warmupSteps": "100", "group": "host"},
            },
        ),
        (
            compose.optimizer(["weight_decay=0.01", "betas=0.9,0.95", "amsgrad=true"]),
            {
                "commandType": "OPTIMIZER",
                "optimizerAdjustment": {
                    "values": {"amsgrad": True, "betas": [0.9, 0.95], "weight_decay": 0.01}
                },
            },
        ),
        (
            compose.optimizer(["weight_decay=0.1"], group="host.1"),
            {
                "commandType": "OPTIMIZER",
                "optimizerAdjustment": {"values": {"weight_decay": 0.1}, "group": "host.1"},
            },
        ),
        (
            compose.optimizer(["adamw"]),
            {"commandType": "OPTIMIZER", "optimizerAdjustment": {"optimizerId": "adamw"}},
        ),
        (
            compose.optimizer(["sgd", "momentum=0.9"]),
            {
                "commandType": "OPTIMIZER",
                "optimizerAdjustment": {"optimizerId": "sgd", "values": {"momentum": 0.9}},
            },
        ),
        (
            compose.seed("germinate", seed_id="s1", slot="body", blueprint="residual_conv"),
            {
                "commandType": "SEED",
                "targetSeedId": "s1",
                "seedOperation": {
                    "operation": "GERMINATE",
                    "blueprintId": "residual_conv",
                    "slot": "body",
                },
            },
        ),
        (
            compose.seed("germinate", ["s1", "width=2"]),
            {
                "commandType": "SEED",
                "targetSeedId": "s1",
                "seedOperation": {"operation": "GERMINATE", "values": {"width": 2.0}},
            },
        ),
        (
            compose.seed("germinate", ["width=2"]),
            {
                "commandType": "SEED",
                "seedOperation": {"operation": "GERMINATE", "values": {"width": 2.0}},
            },
        ),
        (
            compose.seed("start-grafting", ["s1"]),
            {
                "commandType": "SEED",
                "targetSeedId": "s1",
                "seedOperation": {"operation": "START_GRAFTING"},
            },
        ),
        (
            compose.seed("cull", ["s1"], seed_id="s1"),
            {"commandType": "SEED", "targetSeedId": "s1", "seedOperation": {"operation": "CULL"}},
        ),
        (
            compose.emergency("halt"),
            {"commandType": "EMERGENCY", "emergency": {"level": "HALT"}},
        ),
        (
            compose.emergency("Notice", runs="exp-*"),
            {
                "commandType": "EMERGENCY",
                "emergency": {"level": "NOTICE", "scope": "pattern", "runs": "exp-*"},
            },
        ),
        (
            compose.emergency("elevated", scope="all"),
            {"commandType": "EMERGENCY", "emergency": {"level": "ELEVATED", "scope": "all"}},
        ),
        (
            compose.breaker("tamiyo", "half-open"),
            {
                "commandType": "CIRCUIT_BREAKER",
                "circuitBreaker": {"desiredState": "HALF_OPEN", "breaker": "tamiyo"},
            },
        ),
        (
            compose.prune("blocks.0.expand", 0.25, ["impact=0.02"]),
            {
                "commandType": "STRUCTURAL_PRUNING",
                "structuralPruning": {
                    "target": "blocks.0.expand",
                    "fraction": 0.25,
                    "values": {"impact": 0.02},
                },
            },
        ),
        (compose.profile(50), {"commandType": "PROFILE", "profile": {"steps": 50}}),
        (
            compose.mode("conservative"),
            {"commandType": "MODE", "mode": {"conservative": True}},
        ),
        (compose.mode("normal"), {"commandType": "MODE", "mode": {}}),
        (compose.cancel("c9"), {"commandType": "CANCEL", "cancel": {"commandId": "c9"}}),
        (
            compose.parse_json('{"commandType":"pause","annotations":{"at_step":"7"}}'),
            {"commandType": "PAUSE", "annotations": {"at_step": "7"}},
        ),
        (compose.parse_json('{"command_type":21}'), {"commandType": "CHECKPOINT"}),
    ],
)
def test_words_become_a_command(command: AdaptationCommand, expected: object):
    assert as_plain(command) == expected


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (lambda: compose.rollback(to_step=1, to_epoch=1), ["--to-step", "--to-epoch"]),
        (lambda: compose.rollback(data="twice"), ["twice", "skip", "replay"]),
        (lambda: compose.learning_rate(), ["lr", "--factor"]),
        (lambda: compose.learning_rate(0.1, factor=0.5), ["lr", "--factor"]),
        (lambda: compose.optimizer([]), ["optimizer", "weight_decay=0.01"]),
        (lambda: compose.optimizer(["adamw", "fast"]), ["'fast'", "name=value"]),
        (lambda: compose.optimizer(["=3"]), ["'=3'", "name=value"]),
        (lambda: compose.optimizer(["lr=1", "lr=2"]), ["lr", "twice"]),
        (lambda: compose.optimizer(["k=9007199254740993"]), ["k", "2**53"]),
        (lambda: compose.seed("grow", ["s1"]), ["'grow'", "germinate", "fine-tune", "cull"]),
        (lambda: compose.seed("unknown", ["s1"]), ["'unknown'"]),
        (lambda: compose.seed("cull"), ["cull", "s1"]),
        (lambda: compose.seed("cull", ["s1"], seed_id="s2"), ["s1", "s2"]),
        (lambda: compose.seed("cull", ["s1"], slot="body"), ["--slot", "germinate"]),
        (lambda: compose.seed("cull", ["s1"], blueprint="x"), ["--blueprint", "germinate"]),
        (lambda: compose.emergency("panic"), ["'panic'", "notice", "halt"]),
        (lambda: compose.emergency("halt", scope="mine"), ["mine", "pattern", "all"]),
        (lambda: compose.emergency("halt", scope="pattern"), ["--runs"]),
        (lambda: compose.emergency("halt", scope="all", runs="x*"), ["--runs", "pattern"]),
        (lambda: compose.breaker("tamiyo", "ajar"), ["'ajar'", "half-open", "closed"]),
        (lambda: compose.mode("fast"), ["fast", "conservative", "normal"]),
        (lambda: compose.parse_json("{"), ["--json"]),
        (lambda: compose.parse_json("{}"), ["--json", "command_type"]),
        (lambda: compose.parse_json('{"commandType":"DANCE"}'), ["--json", "DANCE"]),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(words, names: list[str]):
    with pytest.raises(ComposeError) as refused:
        words()
    line = str(refused.value)
    assert "\n" not in line
    assert all(name in line for name in names), line


def test_circumstances_are_written_into_the_command():
    given = Circumstances(
        command_id="c1",
        issued_by="operator/ann",
        issued_at_ns=NOW_NS,
        at_step=1200,
        late_ok=True,
        deadline_s=1.5,
        reason="too hot",
    )
    assert as_plain(annotate(compose.simple("pause"), given)) == {
        "version": 1,
        "commandId": "c1",
        "commandType": "PAUSE",
        "executionDeadlineMs": 1500,
        "issuedAt": "2023-11-14T22:13:20Z",
        "issuedBy": "operator/ann",
        "annotations": {"at_step": "1200", "late_ok": "true", "reason": "too hot"},
    }


def test_what_a_written_command_says_itself_stays():
    written = compose.parse_json(
        '{"commandType":"PAUSE","commandId":"mine","issuedBy":"tamiyo/1","version":2,'
        '"issuedAt":"2020-01-01T00:00:00Z","executionDeadlineMs":7}'
    )
    assert annotate(written, PLAIN) == written


def test_the_composed_command_itself_is_not_changed():
    command = compose.simple("pause")
    annotate(command, PLAIN)
    assert command == compose.simple("pause")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"at_step": 1, "at_epoch": 1}, "--at-epoch"),
        ({"late_ok": True}, "--late-ok"),
        ({"deadline_s": 0.0}, "--deadline"),
        ({"deadline_s": -1.0}, "--deadline"),
        ({"deadline_s": math.nan}, "--deadline"),
        ({"deadline_s": 5e6}, "--deadline"),
    ],
)
def test_circumstances_that_make_no_sense_are_refused(changes: dict[str, Any], name: str):
    given = Circumstances("c1", "operator/ann", NOW_NS, **changes)
    with pytest.raises(ComposeError, match=name):
        annotate(compose.simple("pause"), given)


def test_a_breaker_takes_the_reason_as_its_rationale():
    given = Circumstances("c1", "operator/ann", NOW_NS, reason="it lies")
    assert annotate(compose.breaker("tamiyo", "open"), given).circuit_breaker.rationale == "it lies"


def test_urgent_commands_have_priority():
    assert priority(compose.emergency("halt")) == MessagePriority.MESSAGE_PRIORITY_CRITICAL
    assert priority(compose.simple("stop")) == MessagePriority.MESSAGE_PRIORITY_HIGH
    assert priority(compose.learning_rate(1.0)) == MessagePriority.MESSAGE_PRIORITY_NORMAL


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1e-3", -0.001),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("inf", math.inf),
        ("adam", "adam"),
        ('"1"', "1"),
        ("", ""),
        ("0.9,0.95", [0.9, 0.95]),
        ("0.9,", [0.9]),
        ("[0.9, 0.95]", [0.9, 0.95]),
        ('{"a":1}', {"a": 1}),
        ("a,b", ["a", "b"]),
    ],
)
def test_a_word_is_read_as_what_it_looks_like(text: str, value: object):
    assert parse_value("x", text) == value


def test_nan_is_a_number_for_the_run_to_refuse():
    command = compose.optimizer(["weight_decay=nan"])
    assert math.isnan(command.optimizer_adjustment.values.fields["weight_decay"].number_value)
    assert as_plain(command)


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: "=" not in name), st.floats()))
def test_any_assignment_survives_the_trip(values: dict[str, float]):
    read = assignments("x", [f"{name}={value!r}" for name, value in values.items()])
    assert repr({name: float(value) for name, value in read.items()}) == repr(values)


@given(st.text())
def test_no_word_crashes_the_reader(text: str):
    with suppress(ComposeError):
        parse_value("x", text)


def test_every_kind_of_command_can_be_written_or_is_known_to_be_missing():
    written = {
        compose.simple("pause").command_type,
        compose.simple("resume").command_type,
        compose.simple("stop").command_type,
        compose.checkpoint().command_type,
        compose.rollback().command_type,
        compose.learning_rate(1.0).command_type,
        compose.optimizer(["lr=1"]).command_type,
        compose.seed("cull", ["s"]).command_type,
        compose.emergency("halt").command_type,
        compose.breaker("b", "open").command_type,
        compose.profile(1).command_type,
        compose.mode("normal").command_type,
        compose.cancel("c").command_type,
    }
    # By --json only: a controller's answer, and pruning, which no run does yet.
    others = {
        CommandType.COMMAND_UNKNOWN,
        CommandType.COMMAND_CONTINUE,
        CommandType.COMMAND_STRUCTURAL_PRUNING,
    }
    assert written | others == set(CommandType.values())
