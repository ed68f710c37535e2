"""JSON for people: forgiving about names, exact about mistakes."""

import math
from typing import Any

import orjson
import pytest
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from tolaria_bus.leyline import (
    AdaptationCommand,
    CommandOutcome,
    CommandStatus,
    CommandType,
    FieldReport,
    MetricPoint,
    SeedOperation,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import (
    MAX_MESSAGE_BYTES,
    CodecError,
    from_json,
    hyperparameters,
    to_json,
)
from tolaria_bus.leyline.json_form import MAX_DEPTH

PAUSE = CommandType.COMMAND_PAUSE
UNKNOWN: Any = 77


def command(text: str | bytes) -> AdaptationCommand:
    return from_json(text, AdaptationCommand)


def mistake(text: str | bytes, cls: type[Message] = AdaptationCommand) -> str:
    with pytest.raises(CodecError) as error:
        from_json(text, cls)
    assert error.value.reason == "malformed"
    assert len(str(error.value).splitlines()) == 1
    return error.value.detail


@pytest.mark.parametrize("key", ["commandType", "command_type"])
@pytest.mark.parametrize("value", ['"COMMAND_PAUSE"', '"pause"', "5", '"5"'])
def test_names_of_fields_and_enums_are_free(key: str, value: str) -> None:
    assert command(f'{{"{key}":{value}}}').command_type == PAUSE


def test_a_whole_command_from_json() -> None:
    read = command(
        '{"version":1,"commandType":"SEED","targetSeedId":"s","issuedAt":"2030-01-31T12:00:00.5Z",'
        '"seedOperation":{"operation":"germinate","blueprintId":"residual_conv",'
        '"parameters":{"alpha":0.001},"values":{"kernel":[3,5],"bias":false,"deep":{"a":null}}},'
        '"annotations":{"at_step":"12"}}'
    )
    assert read.command_type == CommandType.COMMAND_SEED
    assert read.issued_at.ToMilliseconds() == 1_896_091_200_500
    assert read.seed_operation.operation == SeedOperation.SEED_OP_GERMINATE
    assert dict(read.annotations) == {"at_step": "12"}
    asked = hyperparameters(read.seed_operation.parameters, read.seed_operation.values)
    assert asked == {"alpha": 0.001, "kernel": [3.0, 5.0], "bias": False, "deep": {"a": None}}


def test_null_is_not_set() -> None:
    assert (
        command('{"commandType":null,"seedOperation":null,"issuedAt":null}') == AdaptationCommand()
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON: "),
        ("{", "not JSON: "),
        (b"\xff", "not JSON: "),
        ('{"version":NaN}', "not JSON: "),
        ("[]", "AdaptationCommand: [] must be an object"),
        ("null", "AdaptationCommand: None must be an object"),
        ('{"comandType":1}', "AdaptationCommand: no field 'comandType'; did you mean 'command_"),
        (
            '{"zzz":1}',
            "AdaptationCommand: no field 'zzz'; allowed: version, command_id, ",
        ),
        ('{"commandType":"PAUZE"}', "AdaptationCommand.commandType: 'PAUZE' is not a CommandType;"),
        ('{"commandType":99}', "AdaptationCommand.commandType: '99' is not a CommandType"),
        ('{"commandType":true}', "AdaptationCommand.commandType: 'True' is not a CommandType"),
        ('{"commandType":[5]}', "AdaptationCommand.commandType: [5] is not a CommandType"),
        ('{"commandType":5.0}', "AdaptationCommand.commandType: 5.0 is not a CommandType"),
        ('{"commandId":7}', "AdaptationCommand.commandId: 7 must be a string"),
        (
            '{"version":-1}',
            "AdaptationCommand: Failed to parse version field: Value out of",
        ),
        ('{"version":"x"}', "AdaptationCommand: Failed to parse version field: "),
        (
            '{"issuedAt":5}',
            "AdaptationCommand.issuedAt: 5 is not a time such as 2030-",
        ),
        ('{"issuedAt":"noon"}', "AdaptationCommand.issuedAt: 'noon' is not a time"),
        ('{"annotations":5}', "AdaptationCommand.annotations: 5 must be an object"),
        ('{"annotations":{"a":1}}', "AdaptationCommand.annotations.a: 1 must be a string"),
        ('{"seedOperation":[]}', "AdaptationCommand.seedOperation: [] must be an object"),
        (
            '{"seedOperation":{"operation":"GROW"}}',
            "AdaptationCommand.seedOperation.operation: 'GROW' is not a SeedOp",
        ),
        ('{"commandId":"a","command_id":"b"}', "AdaptationCommand.command_id: given twice"),
        (
            '{"mode":{},"cancel":{}}',
            'AdaptationCommand: Message type "leyline.v1.Adapt',
        ),
        (
            '{"seedOperation":{"parameters":{"a":"x"}}}',
            "AdaptationCommand: Failed to parse param",
        ),
        ('{"rollbackPayload":5}', "AdaptationCommand: Struct must be in a dict which is 5"),
    ],
)
def test_a_mistake_names_the_field_and_the_value(text: str | bytes, says: str) -> None:
    assert mistake(text).startswith(says)


def test_a_mistake_in_a_list_names_the_place() -> None:
    text = '{"events":[{},{"level":"LOUD"}]}'
    assert mistake(text, TelemetryPacket).startswith("TelemetryPacket.events[1].level: 'LOUD' is")
    assert mistake('{"events":{}}', TelemetryPacket) == "TelemetryPacket.events: {} must be a list"


def test_json_is_limited_in_size_and_depth() -> None:
    with pytest.raises(CodecError, match=r"^oversize"):
        command(b" " * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(CodecError, match=r"^oversize"):
        command('{"issuedBy":"' + "é" * (MAX_MESSAGE_BYTES // 2) + '"}')
    for depth in (MAX_DEPTH, 900, 5000):
        nested = '{"a":' * depth + "1" + "}" * depth
        detail = mistake(f'{{"rollbackPayload":{nested}}}')
        assert detail == f"nested deeper than {MAX_DEPTH} levels" or detail.startswith("not JSON")


def test_text_that_utf8_cannot_carry_is_refused() -> None:
    assert "UTF-8" in mistake('{"issuedBy":"\ud800"}')


def test_json_for_people() -> None:
    message = CommandOutcome(
        command_id="c1", status=CommandStatus.COMMAND_STATUS_APPLIED, step=1200, duration_ms=0.1
    )
    message.decided_at.FromMilliseconds(1_896_091_200_500)
    message.details.update({"lr": 0.5, "why": ["a", None, True]})
    assert orjson.loads(to_json(message)) == {
        "commandId": "c1",
        "status": "APPLIED",
        "step": "1200",
        "durationMs": 0.1,
        "decidedAt": "2030-01-31T12:00:00.500Z",
        "details": {"lr": 0.5, "why": ["a", None, True]},
    }
    assert '"COMMAND_STATUS_APPLIED"' in to_json(message, short_enums=False)
    assert "\n" not in to_json(message)
    assert to_json(message, indent=True).startswith('{\n  "commandId": "c1"')


def test_json_with_full_names_is_protobufs_own() -> None:
    message = SystemStatePacket(
        validation_loss=0.1, timestamp_ns=2**60, training_metrics={"b": 1.5, "a": 2.0}
    )
    message.seed_states.add(seed_id="s", stage=3, risk_score=0.3)
    expected = json_format.MessageToDict(message)
    assert orjson.loads(to_json(message, short_enums=False)) == expected


def test_what_json_has_no_word_for_is_shown_all_the_same() -> None:
    report = FieldReport(metrics={"a": math.nan, "b": math.inf, "c": -math.inf})
    assert orjson.loads(to_json(report))["metrics"] == {
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
    }
    assert '"NaN"' in to_json(TelemetryPacket(metrics=[MetricPoint(value=math.nan)]))
    odd = AdaptationCommand(rollback_payload=struct_pb2.Struct(), command_type=UNKNOWN)
    odd.rollback_payload["x"] = math.nan
    odd.issued_at.seconds = 2**60
    shown = orjson.loads(to_json(odd))
    assert shown["rollbackPayload"] == {"x": "NaN"}
    assert shown["commandType"] == "77"
    assert shown["issuedAt"].startswith("out of range")
