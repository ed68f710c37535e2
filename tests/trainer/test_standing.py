"""Who asked for what is on, and since when, whatever else happens since, and in a later process."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from tests.trainer.conftest import Run
from tolaria_bus.leyline import CircuitBreakerState, RunMode
from tolaria_bus.leyline.codec import from_json
from tolaria_bus.safety.breaker import Breaker, BreakerPolicy
from tolaria_bus.safety.breakers import prospect
from tolaria_bus.tolaria.control.mode import note_mode
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.trainer import Trainer


def conservative(run: Run, on: bool, step: int, by: str) -> None:
    text = f'{{"commandType": "MODE", "mode": {{"conservative": {str(on).lower()}}}'
    run.send(f'{text}, "issuedBy": "{by}", "commandId": "{by}-{step}"}}', at_step=step)


def ended(run: Run) -> RunMode:
    """The mode that a run's newest checkpoint has."""
    run.train()
    with closing(RunFolder.open(run.path)) as folder:
        found = folder.checkpoints.newest(folder.live.is_live)
    assert found is not None
    mode = from_json(found.meta["mode"], RunMode)
    assert isinstance(mode, RunMode)
    return mode


def test_a_pause_hides_nobody_who_asked_for_conservative_mode(make_run) -> None:
    run = make_run(steps=12)
    conservative(run, True, 3, "ann")
    run.send('{"commandType": "RESUME", "commandId": "r", "issuedBy": "bob"}', at_step=5)
    mode = ended(run)
    assert mode.by == "bob"
    note = mode.conservative_note
    assert (note.by, note.since_step) == ("ann", 3)
    assert not mode.HasField("held_note")
    # In a later process too; asked for once more it is of whoever did so; left, it is of nobody.
    run = make_run(steps=20)
    conservative(run, True, 14, "cleo")
    mode = ended(run)
    assert (mode.conservative_note.by, mode.conservative_note.since_step) == ("cleo", 14)
    run = make_run(steps=25)
    conservative(run, False, 22, "dora")
    assert not ended(run).HasField("conservative_note")


def test_a_look_has_what_waits_and_is_handed_over_whole(make_run) -> None:
    run = make_run(steps=6)
    run.send('{"commandType": "PAUSE", "commandId": "p", "issuedBy": "ann"}', at_step=400)
    run.send('{"commandType": "CONTINUE", "commandId": "e"}', at_epoch=3)
    with closing(RunFolder.open(run.path)) as folder:
        trainer = Trainer(view(run.job), run.settings, "r", folder, run.mailbox, run.outbound)
        trainer.run()
    told: Any = trainer.standing
    assert told["deferred"] == ["p", "e"]
    first, second = told["deferred_commands"]
    assert (first["command"], first["at_step"], first["by"]) == ("PAUSE", 400, "ann")
    assert (second["at_step"], second["at_epoch"]) == (None, 3)
    assert [each["state"] for each in told["breakers"]] == ["closed"] * len(told["breakers"])
    assert told["conservative"] is None
    assert told["held"] is None
    assert told["checkpoint"]["step"] == 6


def test_what_would_close_a_breaker_is_said() -> None:
    breaker = Breaker("tamiyo", BreakerPolicy(threshold=1, cool_down=3, successes=2))
    assert prospect(breaker, 5.0) == ""
    breaker.failed(5.0, "late")
    by_hand = "send breaker tamiyo closed"
    assert prospect(breaker, 6.0) == f"2 that work, tried in 2 epochs, or {by_hand}"
    assert breaker.allows(8.0)
    breaker.succeeded(8.0)
    assert prospect(breaker, 9.0) == f"1 that work, or {by_hand}"
    breaker.force(CircuitBreakerState.CIRCUIT_STATE_OPEN, 9.0, "no")
    assert prospect(breaker, 99.0) == by_hand


def test_a_note_stays_what_it_was_however_often_it_is_written() -> None:
    mode = RunMode(paused=True, reason="lunch", by="ann")
    note_mode(mode, 3)
    mode.reason = "other"
    note_mode(mode, 9)
    assert (mode.held_note.reason, mode.held_note.since_step) == ("lunch", 3)
    mode.paused = False
    note_mode(mode, 10)
    assert not mode.HasField("held_note")
