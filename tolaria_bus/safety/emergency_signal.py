"""``EmergencySignal``: whom it is for, and whether it is what its sender wrote."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import Final

from tolaria_bus.leyline import AdaptationCommand, CommandEmergency, CommandType, EmergencySignal
from tolaria_bus.leyline.codec import encode

SCOPES: Final = ("self", "run", "pattern", "all")
SIGNAL_PREFIX: Final = "signal:"
"""Of the id of the command that a signal becomes where it is obeyed."""


class UnusableSignal(ValueError):
    """A signal that nobody can obey: its checksum isn't its own, or its scope means nothing."""


def checksum(signal: EmergencySignal) -> bytes:
    """What the signal's ``payload_checksum`` must be: SHA-256 (32 bytes) of all the rest."""
    rest = EmergencySignal()
    rest.CopyFrom(signal)
    rest.ClearField("payload_checksum")
    return hashlib.sha256(encode(rest)).digest()


def check(signal: EmergencySignal) -> None:
    """Make sure that a signal can be used. Whoever writes one by hand gives no checksum.

    Raises:
        UnusableSignal: See there.
    """
    if signal.payload_checksum and signal.payload_checksum != checksum(signal):
        raise UnusableSignal("EmergencySignal.payload_checksum is not that of the signal")
    attributes = signal.attributes
    if why := scope_refused(attributes.get("scope", "self"), attributes.get("runs", "")):
        raise UnusableSignal(f"EmergencySignal.attributes: {why}")


def scope_refused(scope: str, runs: str) -> str:
    """Why a scope and a glob of runs don't go together; empty if they do."""
    if scope not in SCOPES:
        return f"scope = {scope!r}: must be {', '.join(SCOPES[:-1])} or {SCOPES[-1]}"
    if (scope == "pattern") != bool(runs):
        return f"scope = {scope!r}, runs = {runs!r}: scope pattern and a glob of runs go together"
    return ""


def concerns(signal: EmergencySignal, run: str) -> bool:
    """Does this run have to obey a signal? Never its own; else by the signal's scope."""
    if signal.origin == f"run/{run}":
        return False
    scope = signal.attributes.get("scope", "self")
    if scope == "all":
        return True
    if scope == "run":
        return signal.run_id == run
    if scope == "pattern":
        return fnmatchcase(run, signal.attributes.get("runs", ""))
    return False


def as_command(signal: EmergencySignal, signal_id: str) -> AdaptationCommand:
    """The command that a signal is to a run that obeys it.

    Its id comes from the signal's, and all of it from the signal: however often, and by whichever
    way, the signal comes, it is one command, and is done once.
    """
    command = AdaptationCommand(
        version=1,
        command_id=f"{SIGNAL_PREFIX}{signal_id}",
        command_type=CommandType.COMMAND_EMERGENCY,
        issued_at=signal.triggered_at,
        issued_by=signal.origin,
        # What this run says of it is for the record: nobody has to obey the echo.
        emergency=CommandEmergency(level=signal.level, scope="self"),
    )
    command.annotations["reason"] = signal.reason
    return command
