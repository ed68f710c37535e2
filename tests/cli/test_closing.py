"""What is said at the end of a run: how to go on where it was stopped."""

from __future__ import annotations

from dataclasses import replace

from tolaria_bus.cli.closing import go_on
from tolaria_bus.tolaria.summary import RunSummary

STOPPED = RunSummary(
    run="cnn-1",
    job="cnn_job",
    steps=10,
    epochs=1,
    loss=None,
    accuracy=None,
    training_loss=0.5,
    weights_sha256="0" * 64,
    stopped_by="signal",
    commands_applied=0,
    resumed_from="",
    timeline=1,
    mode="running",
    exact=True,
    checkpoint="",
    folder="runs/cnn-1",
    seconds=1.0,
    steps_per_second=10.0,
)


def test_the_words_to_go_on_are_those_that_began_the_run() -> None:
    given = {"epochs": 300, "steps": None, "redis_url": "redis://me:secret@far", "run": None}
    assert go_on(STOPPED, "my jobs/cnn_job.py:Cnn", ["amp=bf16", "job.width=3"], given) == (
        "to go on: tolaria-bus run 'my jobs/cnn_job.py:Cnn' --run cnn-1"
        " --epochs 300 --set amp=bf16 --set job.width=3"
    )


def test_a_run_at_its_end_has_nothing_to_go_on_with() -> None:
    assert go_on(replace(STOPPED, stopped_by="finished"), "digits", [], {}) == ""
