"""One run under torture, as the command line knows it: its folder, its words, what it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.torture.orders import SAVED_EVERY
from tolaria_bus.tolaria.recovery.journal import read_records
from tolaria_bus.tolaria.recovery.ledger import CommandLedger


@dataclass
class Run:
    """One run, as the command line knows it.

    Attributes:
        job: The job's name in :mod:`infra.torture.jobs`.
        name: The run's id.
        home: Holds its folder, its logs and its summary.
        url: The server.
        steps: Optimizer steps in all.
        seed: Of the run.
        environment: Variables of its workers.
    """

    job: str
    name: str
    home: Path
    url: str
    steps: int
    seed: int
    environment: dict[str, str]
    life: int = 0

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.home / "run"

    @property
    def said(self) -> Path:
        """Where its workers note the alerts that they have queued."""
        return self.home / "alerts.txt"

    @property
    def log(self) -> Path:
        """What the present life prints."""
        return self.home / f"life-{self.life:03d}.log"

    def words(self) -> list[str]:
        """Its command line."""
        settings = (
            "threads=1",
            "lease_seconds=2",
            f"checkpoint_every_steps={SAVED_EVERY}",
            # No guard of times may fire: what it decides would be this run's alone.
            "boundary_ms=10000",
        )
        words = ["worker", f"infra.torture.jobs:{self.job}", "--run", self.name]
        words += ["--run-dir", str(self.folder), "--redis", self.url]
        words += ["--steps", str(self.steps), "--seed", str(self.seed)]
        for setting in settings:
            words += ["--set", setting]
        return [*words, "--summary", str(self.home / "summary.json")]

    def summary(self) -> dict[str, Any]:
        """What the newest life that came to an end by itself wrote."""
        found: dict[str, Any] = json.loads((self.home / "summary.json").read_text())
        return found

    def replay_words(self) -> list[str]:
        """The command line that does it again from its journal."""
        words = ["run", f"infra.torture.jobs:{self.job}", "--replay", str(self.folder)]
        return [*words, "--summary", str(self.home / "replayed.json")]

    def ledger(self) -> CommandLedger:
        """What its journal says of its commands."""
        return CommandLedger(read_records(self.folder) if self.folder.is_dir() else ())
