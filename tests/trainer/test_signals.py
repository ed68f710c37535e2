"""What a supervisor sees of a run: its steps, its phases, its deadlines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.trainer.conftest import Run
from tolaria_bus.safety import Phase, Signals, SignalView
from tolaria_bus.safety.signals import Deadline
from tolaria_bus.tolaria.engine.job import view
from tolaria_bus.tolaria.recovery.run_folder import RunFolder
from tolaria_bus.tolaria.trainer import Trainer


class Kept(Signals):
    """Signals that remember the deadlines that were set."""

    names: list[str]

    def deadline(self, name: str, seconds: float) -> Deadline:
        self.names.append(name)
        return super().deadline(name, seconds)


def test_steps_are_stamped_and_a_rollback_has_a_deadline_until_it_is_over(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(steps=40)
    run.send('{"commandType": "COMMAND_ROLLBACK"}', at_step=20)
    signals = Kept.create(tmp_path)
    signals.names = []
    with (
        SignalView(tmp_path) as seen,
        closing(RunFolder.open(run.path)) as folder,
    ):
        assert seen.refresh()
        trainer = Trainer(
            view(run.job),
            run.settings,
            "r",
            folder,
            run.mailbox,
            run.outbound,
            signals=signals,
        )
        assert (seen.phase, seen.made_a_step) == (Phase.LOADING, False)
        begun = seen.progress_ns
        finished = trainer.run()
        assert (seen.step, seen.phase, seen.made_a_step) == (finished.steps, Phase.TRAINING, True)
        assert seen.progress_ns > begun
        assert set(signals.names) == {"rollback"}
        assert seen.deadlines() == []
    signals.close()
