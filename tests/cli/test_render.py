"""One line for every kind of message, for people or for programs, and nothing that hurts a
terminal.
"""

import time
from datetime import datetime, timedelta

import orjson
import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.cli.describe import describe
from tolaria_bus.cli.render import Shown, happened_at, local_time, render_json, render_line
from tolaria_bus.cli.style import clean, paint, wants_colour
from tolaria_bus.cli.watched import concerns
from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    DeadLetter,
    EmergencySignal,
    FieldReport,
    PolicyUpdate,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import from_json

ENTRY = "1700000000123-0"


def read(cls: type[Message], **fields: object) -> Message:
    return from_json(orjson.dumps(fields), cls)


def words(message: Message) -> str:
    return paint(describe(message), colour=False)


TELEMETRY = read(
    TelemetryPacket,
    level="ERROR",
    trainingRunId="digits",
    globalStep=320,
    epoch=5,
    timeline=2,
    metrics=[
        {"name": "tolaria.training.loss", "value": 0.123456789, "unit": "nats"},
        {"name": "tolaria.lr", "value": 0.001, "attributes": {"group": "host"}},
    ],
    events=[
        {
            "eventId": "loss_spike",
            "description": "loss is 40 times its mean",
            "level": "ERROR",
            "attributes": {"factor": "40"},
        }
    ],
    spans=[
        {
            "name": "validate",
            "startTime": "2024-01-01T00:00:00Z",
            "endTime": "2024-01-01T00:00:00.250Z",
        }
    ],
    systemHealth={"status": "DEGRADED", "summary": "slow disk"},
    replayed=True,
    folded=7,
)

MESSAGES = [
    (
        TELEMETRY,
        (
            "ERROR loss_spike: loss is 40 times its mean factor=40 DEGRADED slow disk"
            " training.loss 0.12346 nats lr{group=host} 0.001 span validate 250 ms"
            " 7 times replayed step 320, epoch 5, timeline 2"
        ),
    ),
    (
        read(
            EmergencySignal,
            level="HALT",
            reason="gradient is not finite",
            origin="run/digits",
            runId="digits",
            attributes={"scope": "pattern", "runs": "exp-*", "signal_id": "x", "why": "nan"},
        ),
        "HALT gradient is not finite scope pattern exp-* from run/digits why=nan",
    ),
    (
        read(
            AdaptationCommand,
            commandType="PAUSE",
            commandId="c1",
            issuedBy="operator/ann",
            executionDeadlineMs=1500,
            annotations={"reason": "lunch", "at_step": "400"},
        ),
        "pause “lunch” at_step=400 deadline 1.5 s by operator/ann id c1",
    ),
    (
        read(
            AdaptationCommand,
            commandType="SEED",
            commandId="c2",
            targetSeedId="s1",
            seedOperation={
                "operation": "GERMINATE",
                "blueprintId": "residual_conv",
                "slot": "body",
                "parameters": {"width": 0.1},
            },
        ),
        "seed germinate s1 residual_conv in body width=0.1 id c2",
    ),
    (
        read(
            AdaptationCommand,
            commandType="OPTIMIZER",
            commandId="c3",
            optimizerAdjustment={"optimizerId": "adamw", "values": {"betas": [0.9, 0.95]}},
        ),
        "optimizer adamw betas=[0.9,0.95] id c3",
    ),
    (
        read(
            AdaptationCommand,
            commandType="ROLLBACK",
            commandId="c4",
            rollbackPayload={"target_step": 128, "data": "skip"},
        ),
        "rollback data=skip target_step=128 id c4",
    ),
    (
        read(
            AdaptationCommand,
            commandType="LEARNING_RATE",
            commandId="c5",
            learningRate={"factor": 0.5, "warmupSteps": 10},
        ),
        "learning rate factor:0.5,warmupSteps:10 id c5",
    ),
    (
        read(
            AdaptationCommand,
            commandType="CIRCUIT_BREAKER",
            commandId="c6",
            circuitBreaker={"breaker": "tamiyo", "desiredState": "OPEN"},
        ),
        "circuit breaker tamiyo open id c6",
    ),
    (
        read(
            AdaptationCommand,
            commandType="EMERGENCY",
            commandId="c7",
            emergency={"level": "HALT", "scope": "all"},
        ),
        "emergency HALT scope all id c7",
    ),
    (
        read(AdaptationCommand, commandType="MODE", commandId="c8", mode={}),
        "mode normal id c8",
    ),
    (
        read(
            CommandOutcome,
            commandId="c1",
            status="APPLIED",
            commandType="LEARNING_RATE",
            code="ok",
            step=320,
            epoch=5,
            timeline=1,
            durationMs=0.25,
            details={"before": {"host": 0.01}, "mode": "running", "count": 3},
        ),
        (
            'APPLIED learning rate at step 320, epoch 5 in 0.25 ms before={"host":0.01} count=3'
            " mode=running id c1"
        ),
    ),
    (
        read(
            CommandOutcome,
            commandId="c1",
            status="REJECTED",
            commandType="SEED",
            code="unknown_slot",
            reason="slot 'x': there are body",
            step=3,
            timeline=2,
        ),
        "REJECTED seed unknown_slot: slot 'x': there are body at step 3, timeline 2 id c1",
    ),
    (
        read(
            CommandOutcome,
            commandId="c1",
            status="DUPLICATE",
            commandType="PAUSE",
            step=9,
            firstOutcome={"status": "APPLIED", "step": 4},
        ),
        "DUPLICATE pause first time APPLIED at step 4 at step 9 id c1",
    ),
    (
        read(
            SystemStatePacket,
            currentEpoch=3,
            globalStep=690,
            validationLoss=0.25,
            validationAccuracy=0.9725,
            trainingLoss=0.125,
            mode="paused",
            timeline=2,
            seedStates=[{"seedId": "s1", "slot": "body", "stage": "GERMINATED"}],
        ),
        (
            "epoch 3 step 690 validation loss 0.25 accuracy 97.25% training loss 0.125 paused"
            " timeline 2 seed s1 in body germinated"
        ),
    ),
    (
        read(
            FieldReport,
            outcome="REGRESSION",
            commandId="c1",
            seedId="s1",
            observationWindowEpochs=2,
            metrics={"loss_change": 0.1},
            followUpActions=[{"actionType": "cull"}],
            notes="worse",
        ),
        "REGRESSION command c1 seed s1 over 2 epochs loss_change=0.1 cull worse",
    ),
    (
        read(
            DeadLetter,
            reason="malformed",
            detail="not JSON",
            stream="oona:{digits}:control",
            entryId="5-0",
            deliveries=3,
        ),
        "malformed: not JSON entry 5-0 of oona:{digits}:control, delivered 3 times",
    ),
    (
        read(PolicyUpdate, policyId="p1", tamiyoPolicyVersion="7", payload="AAAA"),
        "policy p1 7 3 bytes",
    ),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_a_message_in_words(message: Message, expected: str):
    assert words(message) == expected


@pytest.mark.parametrize("message", [message for message, _ in MESSAGES])
def test_a_json_line_is_one_line_with_the_whole_message(message: Message):
    shown = Shown("oona:{digits}:x", ENTRY, message, verified=True, source="a", correlation_id="b")
    line = render_json(shown)
    assert "\n" not in line
    written = orjson.loads(line)
    assert written["stream"] == "oona:{digits}:x"
    assert written["id"] == ENTRY
    assert written["verified"] is True
    assert from_json(orjson.dumps(written["message"]), type(message)) == message


@pytest.mark.parametrize(
    "cls",
    [
        AdaptationCommand,
        CommandOutcome,
        DeadLetter,
        EmergencySignal,
        FieldReport,
        PolicyUpdate,
        SystemStatePacket,
        TelemetryPacket,
    ],
)
@given(data=st.binary(max_size=200))
def test_no_message_is_too_strange_to_be_shown(cls: type[Message], data: bytes):
    message = cls()
    try:
        message.ParseFromString(data)
    except Exception:
        return
    shown = Shown("oona:{digits}:x", ENTRY, message)
    assert "\n" not in render_line(shown, colour=True)
    assert orjson.loads(render_json(shown))


def test_a_line_says_when_where_and_what():
    moment = datetime(2023, 11, 14, 22, 13, 20, 123000).astimezone()
    message = read(
        CommandOutcome,
        commandId="c1",
        status="APPLIED",
        commandType="PAUSE",
        step=1,
        decidedAt=moment.isoformat(),
    )
    line = render_line(Shown("oona:{digits}:outcomes", ENTRY, message), colour=False)
    assert line == "2023-11-14 22:13:20.123 digits outcomes  APPLIED pause at step 1 id c1"


def test_what_happened_today_has_no_date():
    now = time.time()
    assert (
        local_time(now)
        == datetime.fromtimestamp(now).astimezone().strftime("%H:%M:%S.")
        + f"{int(now * 1000) % 1000:03d}"
    )
    assert local_time(now - timedelta(days=2).total_seconds()).startswith("20")


@pytest.mark.parametrize("seconds", [1e30, float("nan"), -1e18])
def test_an_absurd_time_is_no_reason_to_fail(seconds: float):
    assert local_time(seconds) == "(no time)"


def test_the_entry_tells_the_time_of_a_message_that_does_not():
    assert happened_at(Shown("s", ENTRY, PolicyUpdate())) == 1_700_000_000.123
    assert happened_at(Shown("s", "?", None)) == 0.0


def test_an_alert_names_its_run_on_the_stream_of_all():
    line = render_line(Shown("oona:emergency", ENTRY, TELEMETRY), colour=False)
    assert " digits emergency ERROR loss_spike: " in line


def test_what_is_not_verified_is_marked_and_shown():
    shown = Shown("oona:emergency", ENTRY, TELEMETRY, verified=False, doubt="signature: none")
    assert "UNVERIFIED (signature: none) ERROR" in render_line(shown, colour=False)
    assert orjson.loads(render_json(shown))["verified"] is False


def test_what_can_not_be_read_says_why():
    shown = Shown("oona:{digits}:control", ENTRY, None, doubt="malformed: not JSON")
    assert render_line(shown, colour=False).endswith(
        f"digits control   UNREADABLE malformed: not JSON {ENTRY}"
    )
    assert orjson.loads(render_json(shown)) == {
        "stream": "oona:{digits}:control",
        "id": ENTRY,
        "type": None,
        "message": None,
        "error": "malformed: not JSON",
    }


def test_nothing_in_a_message_reaches_the_terminal_as_a_control():
    signal = read(EmergencySignal, level="HALT", reason="\x1b[2J\r\nall \u202egood\u009b")
    line = render_line(Shown("oona:emergency", ENTRY, signal), colour=False)
    assert line.isprintable()
    assert "\\x1b[2J\\r\\nall \\u202egood\\x9b" in line


def test_a_very_long_text_is_cut():
    assert clean("x" * 5000) == "x" * 2000 + "… (5000 characters)"


def test_many_metrics_are_counted():
    packet = read(TelemetryPacket, metrics=[{"name": f"m{n}", "value": n} for n in range(100)])
    assert "m11 11 and 88 more" in words(packet)


def test_huge_and_odd_numbers_stay_short():
    outcome = CommandOutcome(command_id="c")
    outcome.details.update({"a": 1e300, "b": float("nan"), "c": float("inf"), "d": 2.0, "e": True})
    assert "a=1e+300 b=nan c=inf d=2 e=true" in words(outcome)
    assert isinstance(outcome.details, Struct)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_is_for_terminals_and_for_those_who_ask(
    variables: dict[str, str],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path,
):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "file").open("w") as file:
        assert wants_colour(file) is expected


def test_colours_change_nothing_but_colours():
    plain = render_line(Shown("oona:emergency", ENTRY, TELEMETRY), colour=False)
    coloured = render_line(Shown("oona:emergency", ENTRY, TELEMETRY), colour=True)
    assert coloured != plain
    stripped = coloured
    for code in ("0", "1", "2", "31", "32", "33", "36", "1;97;41"):
        stripped = stripped.replace(f"\x1b[{code}m", "")
    assert stripped == plain


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (Shown("oona:emergency", ENTRY, TELEMETRY), True),
        (Shown("oona:emergency", ENTRY, read(TelemetryPacket, trainingRunId="other")), False),
        (Shown("oona:emergency", ENTRY, read(TelemetryPacket)), True),
        (Shown("oona:emergency", ENTRY, None, doubt="x"), True),
        (
            Shown(
                "oona:emergency",
                ENTRY,
                read(TelemetryPacket, trainingRunId="other"),
                verified=False,
            ),
            True,
        ),
        (
            Shown("oona:emergency", ENTRY, read(EmergencySignal, runId="other")),
            False,
        ),
        (
            Shown(
                "oona:emergency",
                ENTRY,
                read(EmergencySignal, runId="other", attributes={"scope": "all"}),
            ),
            True,
        ),
        (
            Shown(
                "oona:emergency",
                ENTRY,
                read(
                    EmergencySignal,
                    runId="other",
                    attributes={"scope": "pattern", "runs": "dig*"},
                ),
            ),
            True,
        ),
        (Shown("oona:control", ENTRY, read(AdaptationCommand, commandType="PAUSE")), True),
        (Shown("oona:{other}:control", ENTRY, read(AdaptationCommand)), False),
    ],
)
def test_alerts_of_other_runs_concern_a_run_only_when_they_are_for_it(shown: Shown, expected: bool):
    assert concerns(shown, "digits") is expected
