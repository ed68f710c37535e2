"""Tamiyo is asked at each epoch's end; which answers count, and what no answer means."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.trainer.conftest import STEPS_PER_EPOCH, Run
from tests.trainer.test_commands import GERMINATE
from tolaria_bus.leyline import AdaptationCommand, CommandType, SystemStatePacket
from tolaria_bus.leyline.codec import encode, from_json
from tolaria_bus.tolaria.control.mailbox import Delivery, Mailbox, RecordingOutbound
from tolaria_bus.tolaria.recovery.journal import read_records

CONTINUE = '{"commandType": "CONTINUE"}'
LOWER = '{"commandType": "LEARNING_RATE", "learningRate": {"factor": 0.5}}'
PAUSE = '{"commandType": "PAUSE"}'

Say = Callable[[SystemStatePacket], list[AdaptationCommand]]


def answer(packet_id: str, text: str = CONTINUE, *, name: str = "", by: str = "tamiyo/x", **said):
    command = from_json(text, AdaptationCommand)
    command.command_id = name or f"a.{packet_id}"
    command.issued_by = by
    command.annotations["in_reply_to"] = packet_id
    for key, value in said.items():
        command.annotations[key] = value
    return command


@dataclass
class Tamiyo(RecordingOutbound):
    """Hears state packets, and says at once what ``say`` says to each."""

    mailbox: Mailbox = field(default_factory=Mailbox)
    say: Say = lambda packet: [answer(packet.packet_id)]
    source: str = "tamiyo/x"
    entries: int = 0

    def state(self, packet: SystemStatePacket) -> None:
        super().state(packet)
        for command in self.say(packet):
            self.tell(command)

    def tell(self, command: AdaptationCommand) -> None:
        self.entries += 1
        self.mailbox.post(
            Delivery(
                command,
                encode(command),
                stream="oona:{r}:control",
                entry_id=f"7-{self.entries}",
                source=self.source,
                group="tolaria",
            )
        )


def with_tamiyo(run: Run, say: Say | None = None, source: str = "tamiyo/x") -> Tamiyo:
    tamiyo = Tamiyo(mailbox=run.mailbox, source=source)
    if say is not None:
        tamiyo.say = say
    run.outbound = tamiyo
    return tamiyo


def absences(run: Run) -> list[tuple[int, str]]:
    return [
        (record.step, record.decision.values["waited"])
        for record in read_records(run.path)
        if record.HasField("decision") and record.decision.kind == "tamiyo"
    ]


def events(run: Run, name: str) -> list[str]:
    return [
        event.description
        for packet, _ in run.outbound.packets
        for event in packet.events
        if event.event_id == name
    ]


def test_a_run_without_tamiyo_waits_for_nobody_and_says_nothing_of_it(make_run) -> None:
    run = make_run(epochs=4)
    run.train()
    assert len(run.outbound.states) == 4
    assert absences(run) == []
    assert events(run, "tamiyo_silent") == []


def test_an_overlapped_answer_takes_effect_at_the_next_fence(make_run) -> None:
    run = make_run(epochs=3)
    with_tamiyo(run, lambda packet: [answer(packet.packet_id, LOWER)])
    run.train()
    assert run.outcomes() == [
        (f"a.r.t1.s{step}", "APPLIED", step) for step in (16, 32, 48)
    ]  # fmt: skip
    assert events(run, "tamiyo_answers") == ["tamiyo/x answers"]


def test_a_blocking_run_takes_the_answer_at_the_epochs_fence(make_run) -> None:
    run = make_run(epochs=2, tamiyo="blocking")
    with_tamiyo(run)
    run.train()
    assert run.outcomes() == [("a.r.t1.s16", "APPLIED", 16), ("a.r.t1.s32", "APPLIED", 32)]
    assert absences(run) == []


def test_a_blocking_run_without_tamiyo_goes_on_and_after_two_cut_offs_stops_waiting(
    make_run,
) -> None:
    run = make_run(epochs=4, tamiyo="blocking", tamiyo_seconds=0.01)
    run.train()
    assert absences(run) == [(16, "true"), (32, "true")]
    assert len(events(run, "tamiyo_silent")) == 2
    (opened,) = [event for event in events(run, "breaker") if event.startswith("tamiyo: ")]
    assert "closed → open" in opened


def test_tamiyo_falling_silent_is_told_and_journaled_once(make_run) -> None:
    run = make_run(epochs=6)
    with_tamiyo(
        run, lambda packet: [answer(packet.packet_id)] if packet.current_epoch in {1, 5} else []
    )
    run.train()
    assert absences(run) == [(48, "false")]
    assert len(events(run, "tamiyo_silent")) == 1
    assert len(events(run, "tamiyo_answers")) == 2


def test_an_answer_to_the_packet_before_is_late_and_changes_nothing(make_run) -> None:
    run, before = make_run(epochs=3), make_run("plain", epochs=3)
    last: list[str] = []

    def say(packet: SystemStatePacket) -> list[AdaptationCommand]:
        last.append(packet.packet_id)
        return [answer(last[-2], LOWER)] if len(last) > 1 else []

    with_tamiyo(run, say)
    assert run.train().weights_sha256 == before.train().weights_sha256
    assert [item[1] for item in run.outcomes()] == ["EXPIRED", "EXPIRED"]
    assert {item.code for item in run.outbound.outcomes} == {"late_answer"}


@pytest.mark.parametrize(
    ("make", "source", "code"),
    [
        (lambda packet: answer("other.t1.s16", LOWER), "tamiyo/x", "other_run"),
        (lambda packet: answer("r.t1.s900", LOWER), "tamiyo/x", "unknown_packet"),
        (lambda packet: answer("r.t9.s1", LOWER), "tamiyo/x", "unknown_packet"),
        (lambda packet: answer("no packet's id", LOWER), "tamiyo/x", "unknown_packet"),
        (lambda packet: answer(packet, LOWER, by="operator/eve"), "tamiyo/x", "wrong_issuer"),
        (lambda packet: answer(packet, LOWER), "operator/eve", "wrong_issuer"),
        (lambda packet: answer(packet, LOWER, by="tamiyopathic"), "tamiyo/x", "wrong_issuer"),
        (lambda packet: answer("r.t1.s0", LOWER), "tamiyo/x", "late_answer"),
    ],
)
@pytest.mark.parametrize("mode", ["overlapped", "blocking"])
def test_an_answer_that_is_none_is_refused_with_a_code_and_changes_nothing(
    make_run, mode: str, make, source: str, code: str
) -> None:
    run, before = (
        make_run(epochs=2, tamiyo=mode, tamiyo_seconds=0.01),
        make_run("plain", epochs=2),
    )
    with_tamiyo(run, lambda packet: [make(packet.packet_id)], source)
    assert run.train().weights_sha256 == before.train().weights_sha256
    assert {item.code for item in run.outbound.outcomes} == {code}


def test_nonsense_in_the_right_answer_is_refused_and_counts_as_an_answer(make_run) -> None:
    run = make_run(epochs=2, tamiyo="blocking")
    nonsense = '{"commandType": "LEARNING_RATE", "learningRate": {"factor": -3}}'
    with_tamiyo(run, lambda packet: [answer(packet.packet_id, nonsense)])
    run.train()
    assert [item[1] for item in run.outcomes()] == ["REJECTED", "REJECTED"]
    assert absences(run) == []


def test_a_run_that_takes_no_answers_says_so(make_run) -> None:
    run = make_run(epochs=1, tamiyo="off")
    with_tamiyo(run)
    run.train()
    assert run.outcome("a.r.t1.s16").code == "tamiyo_off"


def test_of_two_answers_the_first_counts_and_the_second_is_late(make_run) -> None:
    run = make_run(epochs=1)
    with_tamiyo(
        run,
        lambda packet: [
            answer(packet.packet_id, LOWER, name="first"),
            answer(packet.packet_id, LOWER, name="second"),
        ],
    )
    run.train()
    assert [item[:2] for item in run.outcomes()] == [("first", "APPLIED"), ("second", "EXPIRED")]


def test_a_flood_of_answers_is_answered_beside_the_training(make_run) -> None:
    run = make_run(epochs=2)

    def say(packet: SystemStatePacket) -> list[AdaptationCommand]:
        return [answer("r.t1.s0", LOWER, name=f"f{number}") for number in range(2000)]

    with_tamiyo(run, lambda packet: say(packet) if packet.current_epoch == 1 else [])
    run.send('{"commandId": "op", "commandType": "CONTINUE"}', at_step=20)
    run.train()
    assert run.outcome("op").step == 20
    assert {item.code for item in run.outbound.outcomes} == {"late_answer", "ok", "deferred"}
    journaled = [record for record in read_records(run.path) if record.HasField("result")]
    assert [record.result.command_id for record in journaled] == ["op"]


def test_what_can_not_wait_ends_the_wait(make_run) -> None:
    run = make_run(epochs=2, tamiyo="blocking", tamiyo_seconds=60.0)

    def say(packet: SystemStatePacket) -> list[AdaptationCommand]:
        run.send('{"commandId": "s", "commandType": "STOP"}')
        return []

    with_tamiyo(run, say)
    assert run.train().steps == STEPS_PER_EPOCH
    assert absences(run) == []


def test_an_answer_may_name_a_later_fence(make_run) -> None:
    run = make_run(epochs=3)
    with_tamiyo(
        run,
        lambda packet: (
            [answer(packet.packet_id, LOWER, at_step="40")] if packet.current_epoch == 1 else []
        ),
    )
    run.train()
    assert run.outcomes() == [("a.r.t1.s16", "DEFERRED", 16), ("a.r.t1.s16", "APPLIED", 40)]


def test_the_packet_says_how_often_tamiyo_intervened_and_which_slots_there_are(make_run) -> None:
    run = make_run(epochs=3)
    first = [answer("r.t1.s16", GERMINATE), answer("r.t1.s32")]
    with_tamiyo(
        run, lambda packet: [first[packet.current_epoch - 1]] if packet.current_epoch < 3 else []
    )
    run.train()
    before, _, after = run.outbound.states
    assert before.training_metrics["tamiyo.interventions"] == 0
    assert after.training_metrics["tamiyo.interventions"] == 1
    assert after.training_metrics["tamiyo.epochs_since.seed"] == 2
    assert [slot.seed_id for slot in before.slots] == [""]
    assert [slot.seed_id for slot in after.slots] != [""]
    assert after.training_metrics["parameters"] > before.training_metrics["parameters"]


def test_a_rollback_makes_the_answer_to_what_it_cut_off_late(make_run) -> None:
    run = make_run(epochs=2)
    run.send('{"commandId": "back", "commandType": "ROLLBACK"}', at_step=20)
    asked: list[str] = []

    def say(packet: SystemStatePacket) -> list[AdaptationCommand]:
        asked.append(packet.packet_id)
        return [answer(asked[0], LOWER)] if packet.timeline == 2 else []

    with_tamiyo(run, say)
    run.train()
    assert run.outcome(f"a.{asked[0]}").code == "late_answer"


@pytest.mark.parametrize("mode", ["overlapped", "blocking"])
def test_a_run_that_asked_tamiyo_is_recovered_to_the_same_bits_and_asks_again_only_beyond_it(
    make_run, mode: str
) -> None:
    def say(packet: SystemStatePacket) -> list[AdaptationCommand]:
        if packet.current_epoch == 2:
            return []
        return [answer(packet.packet_id, LOWER if packet.current_epoch < 3 else CONTINUE)]

    options = {"tamiyo": mode, "tamiyo_seconds": 0.01, "checkpoint_every_epochs": 100}
    whole = make_run("whole", epochs=4, **options)
    with_tamiyo(whole, say)
    expected = whole.train().weights_sha256
    # With its later checkpoints gone, it is done again from the journal.
    for path in (whole.path / "checkpoints").iterdir():
        if not path.name.startswith("0" * 12):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = make_run("whole", epochs=4, **options)
    tamiyo = with_tamiyo(again, say)
    summary = again.train()
    assert summary.weights_sha256 == expected
    assert summary.commands_applied == 3
    assert tamiyo.states == []


def test_commands_of_all_kinds_may_be_answers(make_run) -> None:
    run = make_run(epochs=1)
    with_tamiyo(run, lambda packet: [answer(packet.packet_id, '{"commandType": "CHECKPOINT"}')])
    run.train()
    assert run.outcome("a.r.t1.s16").command_type == CommandType.COMMAND_CHECKPOINT
