"""Names of streams and keys.

The run's id stands in braces, which Redis Cluster reads as a hash tag: all keys of a run live in
one slot, so that one script can write an outcome and acknowledge the command it answers.
"""

import re
from dataclasses import dataclass
from typing import Final

RUN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_RUN_KEY: Final = re.compile(r"[^{}]+:\{([^{}]+)\}:[a-z]+")


def check_run_id(run: str) -> str:
    """Return ``run`` if it can name a run.

    Raises:
        ValueError: it is empty, too long, or has a character that a key or a file can't carry.
    """
    if RUN_ID.fullmatch(run) is None:
        raise ValueError(f"run id {run[:80]!r}: must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return run


def hash_tag(key: str) -> str:
    """Return what decides a key's slot: the part in its first braces, or all of it."""
    start = key.find("{")
    end = key.find("}", start + 1)
    return key[start + 1 : end] if start >= 0 and end > start + 1 else key


def beside(key: str, name: str) -> str:
    """Return a key in the same slot as ``key``, which it names.

    Raises:
        ValueError: there is none: the whole key decides its slot, and has a closing brace in it.
    """
    if hash_tag(key) != key:
        return f"{key}:{name}"
    if "}" in key:
        raise ValueError(f"key {key[:200]!r}: its braces are no hash tag, and leave room for none")
    return f"{{{key}}}:{name}"


def dead_letters_of(stream: str) -> str:
    """Return the dead-letter stream of ``stream``, in the same slot.

    A run's streams share one; any other stream has its own. Same slot means that a dead letter is
    written and its source acknowledged in one script.
    """
    if stream.endswith(":dead"):
        return stream
    return _of_the_run(stream, "dead") or beside(stream, "dead")


def settled_of(stream: str) -> str:
    """Return the key of what was already written to the streams of a slot, in that slot."""
    return _of_the_run(stream, "settled") or beside(stream, "settled")


def groups_of(stream: str) -> str:
    """Return the key of what is known of a stream's groups (``trim.lua``), in the same slot."""
    return beside(stream, "groups")


def run_of(stream: str) -> str | None:
    """Return the run that a key belongs to, or ``None`` for a shared one."""
    found = _RUN_KEY.fullmatch(stream)
    return None if found is None else found[1]


def _of_the_run(stream: str, name: str) -> str | None:
    run = run_of(stream)
    return None if run is None else f"{stream.split(':{', 1)[0]}:{{{run}}}:{name}"


@dataclass(frozen=True, slots=True)
class Streams:
    """The keys under one prefix. Methods taking a run refuse a bad id with ``ValueError``."""

    prefix: str = "oona"

    def __post_init__(self) -> None:
        if _PREFIX.fullmatch(self.prefix) is None:
            raise ValueError(f"prefix {self.prefix[:80]!r}: must be 1 to 64 of A-Z a-z 0-9 . _ : -")

    def _of(self, run: str, name: str) -> str:
        return f"{self.prefix}:{{{check_run_id(run)}}}:{name}"

    def control(self, run: str) -> str:
        """Stream: commands for the run."""
        return self._of(run, "control")

    def state(self, run: str) -> str:
        """Stream: state packets for Tamiyo."""
        return self._of(run, "state")

    def telemetry(self, run: str) -> str:
        """Stream: telemetry of priority LOW and NORMAL."""
        return self._of(run, "telemetry")

    def outcomes(self, run: str) -> str:
        """Stream: what became of each command."""
        return self._of(run, "outcomes")

    def reports(self, run: str) -> str:
        """Stream: field reports."""
        return self._of(run, "reports")

    def dead(self, run: str) -> str:
        """Stream: the run's dead letters."""
        return self._of(run, "dead")

    def lease(self, run: str) -> str:
        """Hash: who works on the run, with the fencing token."""
        return self._of(run, "lease")

    def status(self, run: str) -> str:
        """String: the run's state as JSON, rewritten each second."""
        return self._of(run, "status")

    def settled(self, run: str) -> str:
        """Sorted set: messages already written, by stream and id, so that none is written twice."""
        return self._of(run, "settled")

    @property
    def fleet_control(self) -> str:
        """Stream: commands for every worker."""
        return f"{self.prefix}:control"

    @property
    def emergency(self) -> str:
        """Stream: HIGH and CRITICAL telemetry and emergency signals, of everybody."""
        return f"{self.prefix}:emergency"

    @property
    def runs(self) -> str:
        """Hash: run to host, start and last beat."""
        return f"{self.prefix}:runs"

    @property
    def policies(self) -> str:
        """Stream: policy updates, for every Tamiyo."""
        return f"{self.prefix}:policies"

    dead_letters_of = staticmethod(dead_letters_of)
