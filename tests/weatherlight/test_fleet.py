"""Which workers are asked for, and what is wrong with what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tolaria_bus.settings import SettingError
from tolaria_bus.weatherlight import plan

FLEET = """
[settings]
epochs = 7

[[worker]]
job = "digits"
run = "wide"
settings = { seed = 1, "job.width" = 32 }
environment = { CUDA_VISIBLE_DEVICES = "0" }

[[worker]]
job = "moons.py:Moons"
"""


def asked(*jobs: str, run: str | None = None, file: Path | None = None, **shared: str):
    return plan(jobs, run=run, file=file, assignments=[f"{k}={v}" for k, v in shared.items()])


def test_each_job_is_a_worker_named_after_it_the_same_at_every_start() -> None:
    jobs = ("digits", "moons.py:Moons", "my_jobs.vision:Big Net", "digits")
    runs = [worker.run for worker in asked(*jobs)]
    assert runs == ["digits", "Moons", "Big-Net", "digits-2"]
    assert runs == [worker.run for worker in asked(*jobs)]


def test_a_fleet_file_names_workers_with_settings_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(FLEET)
    wide, moons = asked(file=file, runs_dir="there")
    assert (wide.job, wide.run, wide.folder) == ("digits", "wide", Path("there/wide"))
    assert wide.settings == ["epochs=7", "runs_dir=there", "seed=1", "job.width=32"]
    assert (wide.known.epochs, wide.known.seed) == (7, 1)
    assert wide.environment == {"CUDA_VISIBLE_DEVICES": "0"}
    assert (moons.run, moons.settings) == ("Moons", ["epochs=7", "runs_dir=there"])


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("worker = 3", "worker"),
        ("[[worker]]\nrun = 'a'", "job"),
        ("[[worker]]\njob = 'digits'\nrun = 'no spaces'", "run"),
        ("[[worker]]\njob = 'digits'\ncolour = 'red'", "colour"),
        ("[[worker]]\njob = 'digits'\nsettings = { epochs = 0 }", "epochs"),
        ("[[worker]]\njob = 'digits'\nsettings = { nonsense = 0 }", "nonsense"),
        ("[[worker]]\njob = 'digits'\nsettings = { metrics_port = 1 }", "metrics_port"),
        ("[[worker]]\njob = 'a'\nrun = 'x'\n[[worker]]\njob = 'b'\nrun = 'x'", "run x"),
        ("[[worker]]\njob = 'digits'\nsettings = { hang_seconds = 30 }", "below lease_seconds"),
        ("[[worker", "fleet.toml"),
        ("", "worker"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: str, names: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(content)
    with pytest.raises(SettingError, match=names) as caught:
        asked(file=file)
    assert len(str(caught.value).splitlines()) == 1


def test_there_must_be_a_worker_and_an_id_is_of_one() -> None:
    with pytest.raises(SettingError, match="JOB"):
        asked()
    with pytest.raises(SettingError, match="--run x"):
        asked("digits", "bytes_lm", run="x")
    (only,) = asked("digits", run="x")
    assert only.run == "x"
