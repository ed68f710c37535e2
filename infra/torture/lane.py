"""One process that tortures run after run; several of them share a torture's kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.torture.lives import Failed, Lives, Tally
from infra.torture.nursery import Nursery
from infra.torture.operator import Operator
from infra.torture.orders import write
from infra.torture.run import Run
from infra.torture.server import Server
from infra.torture.verdict import Finished, complaints
from tolaria_bus.leyline import CommandStatus
from tolaria_bus.leyline.codec import short_name
from tolaria_bus.oona.trust import KeyRing

JOBS = {"digits": "SmallDigits", "bytes_lm": "SmallBytes"}
KILLS = 25
"""Of one run, at most; then it goes on to its end."""
FREELY = 3
"""Every so manieth run is steered freely: it is compared with its replay alone."""
ENDLESS = 1_000_000
"""Steps of such a run, which ends by a STOP."""
KEYS = "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"


@dataclass
class Round:
    """What became of one run.

    Attributes:
        number: Counted over all lanes.
        job: ``digits`` or ``bytes_lm``.
        tally: What was done to it.
        sent: Orders by kind.
        outcomes: By status.
        complaints: What it did wrong.
        folder: Where everything of it is, if it did.
        seconds: It took, with the run that was never killed.
    """

    number: int
    job: str
    tally: Tally = field(default_factory=Tally)
    sent: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    folder: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For the process that adds up the lanes."""
        return {**vars(self), "tally": vars(self.tally)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Round:
        """The other way round."""
        tally = values.pop("tally")
        return cls(
            **{
                **values,
                "sent": Counter(values["sent"]),
                "outcomes": Counter(values["outcomes"]),
                "tally": Tally(
                    kills=Counter(tally["kills"]),
                    disturbances=Counter(tally["disturbances"]),
                    damage=Counter(tally["damage"]),
                    recoveries=tally["recoveries"],
                    cold=tally["cold"],
                    trapped=tally["trapped"],
                ),
            }
        )


def play(
    home: Path, *, seed: int, kills: int, first: int, step: int, jobs: tuple[str, ...]
) -> Iterator[Round]:
    """Torture runs until there were so many kills, or one does what it must not.

    Args:
        home: Folder for everything; what went well is removed from it.
        seed: Of the whole torture.
        kills: How many.
        first: Number of the first run.
        step: From one run's number to the next one's.
        jobs: In turn, by number.
    """
    for name in [name for name in os.environ if "TOLARIA" in name]:
        del os.environ[name]
    os.environ |= {
        "XDG_STATE_HOME": str(home / "state"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Workers are started in folders of their own, and the job is here.
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done, number = 0, first
    with Nursery() as nursery:
        while done < kills:
            round_ = _round(
                home / f"{number:03d}",
                nursery,
                seed=seed,
                number=number,
                job=jobs[number % len(jobs)],
                kills=min(KILLS, kills - done),
            )
            yield round_
            if round_.complaints:
                return
            done += round_.tally.kills.total()
            number += step


def _round(
    folder: Path, nursery: Nursery, *, seed: int, number: int, job: str, kills: int
) -> Round:
    began = time.monotonic()
    chance = random.Random(f"{seed}/{number}")
    keys = chance.choice((KEYS, ""))
    script = write(f"{seed}/{number}/script", job, signed=bool(keys))
    freely = number % (2 * FREELY) >= 2 * (FREELY - 1)
    round_ = Round(number, f"{job}, freely" if freely else job)

    @contextmanager
    def lived(name: str, kills: int) -> Iterator[Finished]:
        home = folder / name
        home.mkdir(parents=True)
        with Server(home / "server") as server:
            run = Run(
                job=JOBS[job],
                name=f"r{number}",
                home=home,
                url=server.url,
                steps=ENDLESS if freely else script.steps,
                seed=number,
                environment={"TOLARIA_SIGNING_KEYS": keys} if keys else {},
            )
            operator = Operator(
                server.url,
                run.name,
                script,
                KeyRing.parse(keys),
                tortured=bool(kills),
                chance=random.Random(chance.random()) if kills else None,
                freely=freely,
            )
            lives = Lives(run, nursery, operator, server, kills=kills, chance=chance, freely=freely)
            if kills:
                round_.tally, round_.sent = lives.tally, operator.sent
            operator.begin()
            try:
                yield Finished(run, operator, lives.play())
            finally:
                operator.leave()
                operator.join()

    try:
        with ExitStack() as stack:
            whole = None if freely else stack.enter_context(lived("whole", 0))
            tortured = stack.enter_context(lived("tortured", kills))
            round_.outcomes.update(
                short_name(CommandStatus, outcome.status)
                for outcome in tortured.operator.outcomes()
            )
            round_.complaints = [
                *complaints(tortured, whole),
                *_other_when_repeated(tortured, nursery),
            ]
    except Failed as error:
        round_.complaints = [str(error)]
    round_.seconds = time.monotonic() - began
    if round_.complaints:
        round_.folder = str(folder)
    else:
        shutil.rmtree(folder)
    return round_


def _other_when_repeated(tortured: Finished, nursery: Nursery) -> list[str]:
    """Do the run again from its journal: it must come to the same bits."""
    run = tortured.run
    log = run.home / "replay.log"
    words = run.replay_words()
    started = nursery.start(
        words, cwd=run.home, log=log, environment=run.environment, said=run.home / "unused.txt"
    )
    code = nursery.reap(started)
    if code:
        return [f"its replay ended with {code}: {log.read_text().strip()[-300:]}"]
    repeated = json.loads((run.home / "replayed.json").read_text())
    expected = tortured.summary["weights_sha256"]
    if not repeated["same_bits"] or repeated["weights_sha256"] != expected:
        return [f"its replay ended with {repeated['weights_sha256']}, the run with {expected}"]
    return []
