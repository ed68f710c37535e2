"""Policies by name and options, and how they are switched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tamiyo.packets import history, packet
from tests.tamiyo.policies_for_tests import HELD
from tolaria_bus.leyline import CommandType, PolicyUpdate
from tolaria_bus.tamiyo import Limits, PolicyBook, PolicyRefused, answering, make
from tolaria_bus.tamiyo.answering import Answerer

OURS = "tests.tamiyo.policies_for_tests"


def update(policy: str, payload: str = "", run: str = "") -> PolicyUpdate:
    return PolicyUpdate(policy_id=policy, payload=payload.encode(), training_run_id=run)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("nobody", {}, "known: heuristic, continue"),
        ("heuristic", {"patience": 0}, "patience"),
        ("heuristic", {"colour": 1}, "colour"),
        ("no.such.module:x", {}, "ModuleNotFoundError"),
        (f"{OURS}:missing", {}, "missing"),
        (f"{OURS}:HELD", {}, "not callable"),
    ],
)
def test_a_policy_that_can_not_be_made_is_refused_in_a_line(name: str, options, why: str) -> None:
    with pytest.raises(PolicyRefused, match=why) as refused:
        make(name, options, load=True)
    assert "\n" not in str(refused.value)


def test_code_is_loaded_for_who_starts_tamiyo_and_for_nobody_else() -> None:
    assert make(f"{OURS}:halving", {"factor": 0.25}, load=True).label.endswith("(factor=0.25)")
    with pytest.raises(PolicyRefused, match="not known"):
        make(f"{OURS}:halving", {})


def test_a_policy_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies_of_mine.py").write_text("def idle():\n    return lambda *_: None\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert make("policies_of_mine:idle", {}, load=True).label == "policies_of_mine:idle"


def test_a_run_has_the_newest_policy_that_was_said_for_it_or_for_all() -> None:
    book = PolicyBook(make("heuristic", {}))
    book.update(update("heuristic", '{"patience": 9}', run="a"))
    assert (book.of("a").label, book.of("b").label) == ("heuristic(patience=9)", "heuristic")
    book.update(update("continue"))
    assert (book.of("a").label, book.of("b").label) == ("continue", "continue")


@pytest.mark.parametrize(
    ("policy", "payload", "why"),
    [
        ("nobody", "", "not known"),
        ("os:system", '{"command": "true"}', "not known"),
        ("heuristic", "patience", "isn't JSON"),
        ("heuristic", "[1]", "JSON object"),
        ("heuristic", '{"patience": "many"}', "patience"),
    ],
)
def test_an_update_that_makes_no_policy_changes_nothing(policy: str, payload: str, why) -> None:
    book = PolicyBook(make("heuristic", {}))
    with pytest.raises(PolicyRefused, match=why):
        book.update(update(policy, payload))
    assert book.of("a").label == "heuristic"


def test_what_tamiyo_was_started_with_can_be_switched_back_to() -> None:
    book = PolicyBook(make(f"{OURS}:halving", {}, load=True))
    book.update(update("continue", run="a"))
    book.update(update(f"{OURS}:halving", run="a"))
    assert book.of("a").label == f"{OURS}:halving"


@pytest.mark.parametrize(
    ("policy", "options", "event", "why"),
    [
        ("broken", {}, "policy_failed", "RuntimeError: out of ideas"),
        ("lying", {}, "policy_failed", "it returned a str"),
        ("hanging", {}, "policy_failed", "took over"),
        ("halving", {"factor": 0.01}, "policy_limited", "a rate times 0.01"),
        ("halving", {"factor": float("nan")}, "policy_limited", "a rate times nan"),
    ],
)
async def test_a_policy_that_does_wrong_is_answered_for_by_going_on(
    policy: str, options, event: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "POLICY_SECONDS", 0.1)
    HELD.clear()
    told: list[tuple[str, str]] = []
    answerer = Answerer(
        "tamiyo/t", Limits(), lambda name, detail: told.append((name, detail["reason"]))
    )
    named = make(f"{OURS}:{policy}", options, load=True)
    command = await answerer.answer(named, packet(3, 1.0), history([1.0]))
    HELD.set()
    assert command.command_type == CommandType.COMMAND_CONTINUE
    assert why in command.annotations["reason"]
    ((name, reason),) = told
    assert name == event
    assert why in reason


async def test_an_answer_names_its_packet_its_policy_and_itself() -> None:
    answerer = Answerer("tamiyo/t", Limits(), lambda name, detail: None)
    named = make(f"{OURS}:halving", {}, load=True)
    asked = packet(3, 1.0)
    first = await answerer.answer(named, asked, history([1.0]))
    second = await answerer.answer(named, asked, history([1.0]))
    assert first.command_type == CommandType.COMMAND_LEARNING_RATE
    assert first.annotations["in_reply_to"] == asked.packet_id
    assert first.annotations["policy"] == f"{OURS}:halving"
    assert first.issued_by == "tamiyo/t"
    assert first.command_id == second.command_id
    asked.timestamp_ns += 1
    assert (await answerer.answer(named, asked, history([1.0]))).command_id != first.command_id
