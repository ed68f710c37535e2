"""The live path, against a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tests.recovery.records import cut, note, numbered
from tolaria_bus.leyline import JournalRecord
from tolaria_bus.tolaria.recovery.timeline import LivePath, live


def sequences(records: list[JournalRecord]) -> list[int]:
    return [record.sequence for record in records]


def test_a_cut_drops_what_is_behind_its_target_and_stays_itself() -> None:
    records = numbered(note(), note(), note(), note(), cut(2), note())
    assert sequences(live(records)) == [1, 2, 5, 6]
    path = LivePath(records)
    assert [number for number in range(9) if path.is_live(number)] == [0, 1, 2, 5, 6]
    assert len(path) == 4


def test_a_later_cut_drops_an_earlier_one_but_not_what_that_one_undid() -> None:
    records = numbered(note(), note(), cut(1), note(), cut(1, from_timeline=2))
    assert sequences(live(records)) == [1, 5]
    deeper = numbered(note(), note(), note(), cut(2), note(), cut(0, from_timeline=2), note())
    assert sequences(live(deeper)) == [6, 7]


def test_states_at_later_steps_that_contain_the_same_record_are_cut() -> None:
    """Checkpoints at steps 100, 200 and 300 with no command between: all contain record 1."""
    path = LivePath(numbered(note(), cut(1, target_step=200)))
    assert path.is_live(1)
    assert [path.is_live(1, step) for step in (100, 200, 300)] == [True, True, False]
    assert path.is_live(2, 300)  # On the new timeline.
    assert [path.is_live(0, step) for step in (0, 200, 201)] == [True, True, False]


@dataclass
class NaiveRun:
    """A run that knows its own past: every state is the list of records it came from."""

    records: list[JournalRecord] = field(default_factory=list)
    step: int = 0
    past: list[int] = field(default_factory=list)
    states: list[tuple[int, int, list[int], int]] = field(default_factory=list)
    timeline: int = 1
    begun: dict[int, int] = field(default_factory=lambda: {0: 1})

    def do(self, action: tuple[str, int]) -> None:
        kind, number = action
        if kind == "step":
            self.step += 1 + number % 3
        elif kind == "record":
            self.past.append(len(self.records) + 1)
            self.records.append(JournalRecord(sequence=self.past[-1], step=self.step))
        elif kind == "save":
            last = self.past[-1] if self.past else 0
            self.states.append((last, self.step, list(self.past), self.timeline))
        elif self.states:
            reachable = [state for state in self.states if self.lives(state)]
            if not reachable:
                return
            last, step, past, _ = reachable[number % len(reachable)]
            record = cut(last, step, self.timeline)
            record.sequence = len(self.records) + 1
            self.timeline += 1
            self.records.append(record)
            self.step, self.past = step, [*past, record.sequence]
            self.states = [
                state for state in self.states if self.before(state, last, step, past)
            ] + [(record.sequence, step, list(self.past), self.timeline)]

    @staticmethod
    def before(
        state: tuple[int, int, list[int], int], last: int, step: int, past: list[int]
    ) -> bool:
        """Was the run in this state on its way to the target?"""
        return state[2] == past[: len(state[2])] and state[0] <= last and state[1] <= step

    def lives(self, state: tuple[int, int, list[int], int]) -> bool:
        return state[2] == self.past[: len(state[2])]


actions = st.lists(
    st.tuples(st.sampled_from(["step", "record", "save", "save", "back"]), st.integers(0, 50)),
    max_size=60,
)


@given(actions)
def test_the_live_path_is_the_past_of_the_run(script: list[tuple[str, int]]) -> None:
    run, path = NaiveRun(), LivePath()
    noted = 0
    everything: list[tuple[int, int]] = []
    for action in script:
        run.do(action)
        for record in run.records[noted:]:
            path.note(record)
        noted = len(run.records)
        everything += [(state[0], state[1]) for state in run.states]
    assert sequences(list(path)) == run.past
    assert sequences(live(run.records)) == run.past
    past = set(run.past)
    for sequence in range(1, noted + 3):
        assert path.is_live(sequence) == (sequence in past)
    reachable = {(state[0], state[1]) for state in run.states}
    for sequence, step in everything:
        assert path.is_live(sequence, step) == ((sequence, step) in reachable)
