"""One answer: the policy asked, held to the limits, and made a command of its run's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from anyio import to_thread

from tolaria_bus.leyline import AdaptationCommand, CommandType, SystemStatePacket
from tolaria_bus.leyline.annotations import IN_REPLY_TO, POLICY, REASON
from tolaria_bus.leyline.codec import CodecError, encode, short_name
from tolaria_bus.tamiyo.advice import nothing
from tolaria_bus.tamiyo.history import History
from tolaria_bus.tamiyo.limits import Limits
from tolaria_bus.tamiyo.policies import Named

POLICY_SECONDS: Final = 1.5
"""How long a policy that isn't shipped may think; the run's own cut-off is at 2 s."""

OnEvent = Callable[[str, Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Answerer:
    """Makes answers.

    Attributes:
        issuer: ``tamiyo/`` and a name.
        limits: What no policy may do.
        on_event: Told what a policy did wrong: ``policy_failed``, ``policy_limited`` (run, policy,
            reason).
    """

    issuer: str
    limits: Limits
    on_event: OnEvent

    async def answer(
        self, named: Named, packet: SystemStatePacket, history: History
    ) -> AdaptationCommand:
        """The command for a packet; COMMAND_CONTINUE where the policy has none that may be used."""
        why, command = "", None
        said: object = None
        try:
            if named.ours:
                said = named.policy(packet, history)
            else:
                # Somebody else's code: it may be slow, or never come back.
                with anyio.fail_after(POLICY_SECONDS):
                    said = await to_thread.run_sync(
                        named.policy, packet, history, abandon_on_cancel=True
                    )
        except TimeoutError:
            why = f"took over {POLICY_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001 - a policy is anybody's code
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            if isinstance(said, AdaptationCommand):
                command = said
            elif said is not None:
                why = f"it returned a {type(said).__name__}"
        if why:
            self._tell("policy_failed", packet, named, why)
        elif command is not None:
            why = self.limits.refuses(command, packet) or _unsendable(command)
            if why:
                wanted = short_name(CommandType, command.command_type)
                why = f"wanted {wanted}: {why}"
                self._tell("policy_limited", packet, named, why)
        return self._stamped(nothing(why) if why or command is None else command, named, packet)

    def _stamped(
        self, command: AdaptationCommand, named: Named, packet: SystemStatePacket
    ) -> AdaptationCommand:
        stamped = AdaptationCommand()
        stamped.CopyFrom(command)
        stamped.version = 1
        # The same for the same packet, whoever answers; another one if the run asks again.
        stamped.command_id = f"tamiyo.{packet.packet_id}.{packet.timestamp_ns:x}"
        stamped.issued_by = self.issuer
        stamped.issued_at.GetCurrentTime()
        stamped.annotations[IN_REPLY_TO] = packet.packet_id
        stamped.annotations[POLICY] = named.label
        stamped.annotations[REASON] = stamped.annotations[REASON] or f"{named.label}: all is well"
        return stamped

    def _tell(self, name: str, packet: SystemStatePacket, named: Named, why: str) -> None:
        self.on_event(name, {"run": packet.training_run_id, "policy": named.label, "reason": why})


def _unsendable(command: AdaptationCommand) -> str:
    try:
        encode(command)
    except CodecError as error:
        return str(error)
    if command.HasField("learning_rate") and not math.isfinite(
        command.learning_rate.factor + command.learning_rate.learning_rate
    ):
        return "a rate that isn't finite"
    return ""
