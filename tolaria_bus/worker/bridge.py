"""Between the bus and the mailbox: entries become deliveries, messages become packets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from google.protobuf.message import Message

from tolaria_bus.leyline import (
    AdaptationCommand,
    BusMessageType,
    CommandOutcome,
    CommandStatus,
    EmergencySignal,
    FieldReport,
    MessagePriority,
    Settlement,
    SystemStatePacket,
    TelemetryPacket,
)
from tolaria_bus.leyline.codec import encode, short_name
from tolaria_bus.oona.consumer import Received
from tolaria_bus.oona.dead_letters import build
from tolaria_bus.oona.outbox import Outbox
from tolaria_bus.oona.resent import is_resent
from tolaria_bus.oona.scripts import Entry
from tolaria_bus.oona.sealing import seal
from tolaria_bus.oona.streams import Streams
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.safety import Signals
from tolaria_bus.safety.emergency_signal import UnusableSignal, as_command, check, concerns
from tolaria_bus.tolaria.control.mailbox import Delivery
from tolaria_bus.tolaria.control.outcomes import FATAL
from tolaria_bus.worker.emergency_times import EmergencyTimes

PASSED_ON = "passed_on"
"""What a signal's stream is called that came from a supervisor: it has no entry."""


class BusOutbound:
    """The trainer's way out: puts what it says into the outbox, by stream and priority.

    Args:
        outbox: Takes packets from any thread, in microseconds.
        streams: Names of the streams.
        run: The run's id.
        ring: Signs what a dead letter of the trainer's holds.
        on_outcome: Told, on the trainer's thread, once an entry's outcome is in the outbox.
        signals: Where emergencies are left for a supervisor, should this process not send them.

    Attributes:
        times: Of the run's emergency signals.
    """

    def __init__(
        self,
        outbox: Outbox,
        streams: Streams,
        run: str,
        on_outcome: Callable[[CommandOutcome, Delivery], None] = lambda *_: None,
        ring: KeyRing | None = None,
        signals: Signals | None = None,
    ) -> None:
        self._outbox = outbox
        self._streams = streams
        self._run = run
        self._on_outcome = on_outcome
        self._ring = ring or KeyRing()
        self._signals = signals
        self.times = EmergencyTimes(run, self._tell_time)
        outbox.on_alert = self.times.published

    def telemetry(self, packet: TelemetryPacket, priority: MessagePriority.ValueType) -> None:
        """HIGH and CRITICAL to the emergency stream, the rest to the run's telemetry."""
        stream = (
            self._streams.emergency
            if priority >= MessagePriority.MESSAGE_PRIORITY_HIGH
            else self._streams.telemetry(self._run)
        )
        self._outbox.put(packet, stream=stream, priority=priority, message_id=packet.packet_id)

    def emergency(self, signal: EmergencySignal) -> None:
        """To the emergency stream, ahead of everything.

        A supervisor that sends it too does so under the same id, and the server takes it once.
        """
        self.times.began(signal)
        if self._signals is not None:
            self._signals.emergency(encode(signal))
        self._outbox.put(
            signal,
            stream=self._streams.emergency,
            priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
            message_id=signal.attributes["signal_id"],
        )

    def state(self, packet: SystemStatePacket) -> None:
        """To the run's state stream."""
        self._outbox.put(
            packet,
            stream=self._streams.state(self._run),
            priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
            message_id=packet.packet_id,
        )

    def outcome(self, outcome: CommandOutcome, delivery: Delivery | None) -> None:
        """To the run's outcomes; with a delivery, its entry is finished in the same step.

        A command that was given up is the exception: its entry becomes a dead letter, which
        ``on_outcome`` sees to. Where the entry is gone the letter is made here.
        """
        settlement = None
        given_up = outcome.code == FATAL
        if given_up and delivery is not None and delivery.entry_gone:
            self._dead_letter(outcome.reason, delivery)
        if delivery is not None and delivery.group and not given_up:
            settlement = Settlement(
                stream=delivery.stream,
                group=delivery.group,
                entry_id=delivery.entry_id,
                # Only a run's own control stream has a single group.
                delete=delivery.stream == self._streams.control(self._run),
            )
        self._outbox.put(
            outcome,
            stream=self._streams.outcomes(self._run),
            priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
            message_id=outcome_message_id(outcome, delivery),
            correlation_id=outcome.command_id,
            settlement=settlement,
            durable=True,
        )
        if delivery is not None:
            self._on_outcome(outcome, delivery)

    def _tell_time(self, packet: TelemetryPacket) -> None:
        self.telemetry(packet, packet.priority)

    def _dead_letter(self, reason: str, delivery: Delivery) -> None:
        """A letter about a command of which the journal alone has the bytes."""
        fields = seal(
            delivery.command, stream=delivery.stream, source=delivery.source, ring=self._ring
        )
        letter = build(
            Entry(delivery.stream, "", delivery.entry_id), FATAL, reason, fields, consumer=self._run
        )
        self._outbox.put(
            letter,
            stream=self._streams.dead_letters_of(delivery.stream),
            priority=MessagePriority.MESSAGE_PRIORITY_HIGH,
            message_id=f"{delivery.stream}/{delivery.entry_id}",
            durable=True,
        )

    def report(self, report: FieldReport) -> None:
        """To the run's reports."""
        self._outbox.put(
            report,
            stream=self._streams.reports(self._run),
            priority=MessagePriority.MESSAGE_PRIORITY_NORMAL,
            message_id=report.report_id,
            correlation_id=report.command_id,
            durable=True,
        )


def outcome_message_id(outcome: CommandOutcome, delivery: Delivery | None) -> str:
    """The same for the same answer to the same entry, however often it is sent, and by whom.

    A command may be answered again when its entry is delivered again, on another timeline by then.
    """
    entry = delivery.entry_id if delivery is not None else outcome.entry_id
    status = short_name(CommandStatus, outcome.status)
    undone = outcome.status == CommandStatus.COMMAND_STATUS_ROLLED_BACK
    timeline = outcome.timeline if undone else ""
    text = f"{outcome.command_id}\0{entry}\0{status}\0{timeline}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def command_delivery(received: Received) -> Delivery:
    """A command's entry as the trainer takes it.

    Raises:
        TypeError: The entry holds another kind of message.
    """
    message: Message = received.opened.message
    if not isinstance(message, AdaptationCommand):
        raise TypeError(f"expected AdaptationCommand, got {type(message).__name__}")
    return Delivery(
        command=message,
        payload=received.opened.payload,
        stream=received.stream,
        entry_id=received.entry_id,
        source=received.opened.source,
        priority=received.opened.priority,
        group=received.group,
        digest=received.opened.digest,
        resent=is_resent(received.opened.envelope, received.stream),
    )


def signal_delivery(received: Received, run: str) -> Delivery | None:
    """An emergency signal as a command to obey, or ``None`` where it isn't for this run.

    The command's id comes from the signal's, so a signal is obeyed once.

    Raises:
        UnusableSignal: Its checksum isn't its own, or its scope means nothing.
    """
    signal: Message = received.opened.message
    if not isinstance(signal, EmergencySignal):
        return None
    check(signal)
    if not concerns(signal, run):
        return None
    signal_id = signal.attributes.get("signal_id") or f"{received.stream}/{received.entry_id}"
    command = as_command(signal, signal_id)
    return Delivery(
        command=command,
        payload=encode(command),
        stream=received.stream,
        entry_id=received.entry_id,
        source=received.opened.source,
        priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
        group=received.group,
        resent=is_resent(received.opened.envelope, received.stream),
    )


def passed_delivery(signal: EmergencySignal, run: str) -> Delivery | None:
    """A signal that a supervisor passed on as a command to obey; ``None``: it isn't for this run.

    Raises:
        UnusableSignal: Its checksum isn't its own, or its scope means nothing; or it has no id.
    """
    check(signal)
    if not concerns(signal, run):
        return None
    signal_id = signal.attributes.get("signal_id", "")
    if not signal_id:
        raise UnusableSignal("EmergencySignal.attributes: signal_id is missing")
    command = as_command(signal, signal_id)
    return Delivery(
        command=command,
        payload=encode(command),
        stream=PASSED_ON,
        source=signal.origin,
        priority=MessagePriority.MESSAGE_PRIORITY_CRITICAL,
    )


COMMANDS = frozenset({BusMessageType.BUS_MESSAGE_TYPE_ADAPTATION_COMMAND})
ALERTS = frozenset(
    {BusMessageType.BUS_MESSAGE_TYPE_EMERGENCY_SIGNAL, BusMessageType.BUS_MESSAGE_TYPE_TELEMETRY}
)
