"""What a power cut may do to a run's files, done between a death and the next start.

Only what no promise covers: bytes that were never acknowledged, a record that had no effect outside
of the dead process, a checkpoint that has others before it.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from tolaria_bus.leyline import AdaptationCommand, CommandType, JournalRecord
from tolaria_bus.tolaria.recovery.checkpoint_info import is_checkpoint_name, parse_name
from tolaria_bus.tolaria.recovery.segments import frame, frame_at, segments

_INWARD = frozenset(
    {
        CommandType.COMMAND_SEED,
        CommandType.COMMAND_OPTIMIZER,
        CommandType.COMMAND_LEARNING_RATE,
        CommandType.COMMAND_CONTINUE,
        CommandType.COMMAND_MODE,
    }
)
"""What they do before their RESULT is in memory alone."""


@dataclass(frozen=True)
class Append:
    """One append to a journal.

    Attributes:
        start: Its first byte in the file.
        end: The byte behind its last.
        records: What it holds.
    """

    start: int
    end: int
    records: tuple[JournalRecord, ...]


def last_append(segment: Path) -> Append | None:
    """The last whole append of a segment, ``None`` if it has none."""
    data, offset = segment.read_bytes(), 0
    found: Append | None = None
    while (here := frame_at(data, offset)) is not None:
        record = JournalRecord.FromString(here.payload)
        if here.begins_append or found is None:
            found = Append(offset, here.end, (record,))
        else:
            found = Append(found.start, here.end, (*found.records, record))
        offset = here.end
    return found


def tear(folder: Path, chance: random.Random) -> str:
    """Leave a torn tail in the journal of a dead worker.

    Returns:
        What was done, for the report; empty if there is no journal yet.
    """
    if not folder.is_dir() or not (paths := segments(folder)):
        return ""
    last = last_append(paths[-1])
    if last is not None and _may_be_torn(last) and chance.random() < 0.7:
        cut = chance.randrange(last.start, last.end)
        if chance.random() < 0.5:
            os.truncate(paths[-1], cut)
            return "journal cut in its last append"
        with paths[-1].open("r+b") as file:
            # From there to its end, as if those blocks had never reached the disk.
            file.seek(cut)
            file.write(bytes(last.end - cut))
        return "journal's last append zeroed"
    with paths[-1].open("ab") as file:
        kind = chance.choice(("zeros", "noise", "half a frame"))
        if kind == "zeros":
            file.write(bytes(chance.randint(1, 5000)))
        elif kind == "noise":
            file.write(chance.randbytes(chance.randint(1, 300)))
        else:
            whole = frame(chance.randbytes(200), begins_append=True)
            file.write(whole[: chance.randint(1, len(whole) - 1)])
    return f"journal with {kind} behind its end"


def spoil(folder: Path, chance: random.Random) -> str:
    """Flip a bit in the newest checkpoint of a dead worker, if an older one is there.

    Returns:
        What was done, for the report; empty if nothing was.
    """
    store = folder / "checkpoints"
    names = [path.name for path in store.glob("step-*") if is_checkpoint_name(path.name)]
    if len(names) < 3:
        return ""
    newest = max(names, key=lambda name: parse_name(name)[::-1])
    target = store / newest / chance.choice(("tensors.safetensors", "manifest.json"))
    # What was made once, by a STOP or because it was asked for, isn't made again.
    if (store / newest / "pinned").exists() or b'"end"' in (
        store / newest / "manifest.json"
    ).read_bytes():
        return ""
    data = bytearray(target.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    target.write_bytes(data)
    return f"a bit flipped in the newest checkpoint's {target.suffix[1:]}"


def _may_be_torn(last: Append) -> bool:
    kinds = {record.WhichOneof("record") for record in last.records}
    if kinds == {"checkpoint"}:
        return True
    if not kinds <= {"intent", "attempt"} or "intent" not in kinds:
        return False
    commands = [
        AdaptationCommand.FromString(record.intent.command)
        for record in last.records
        if record.HasField("intent")
    ]
    return all(command.command_type in _INWARD for command in commands)
