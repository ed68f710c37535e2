"""Dead letters in pages, with what they hold: to be listed, shown, chosen.

A letter says what it says, but who says so? Where signing is on, one that isn't signed with a key
of ours may have been written by anybody; it is read all the same, for people to look at, and its
``doubt`` says why it isn't believed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from tolaria_bus.leyline import DeadLetter
from tolaria_bus.oona.dead_letters import seen_key, seen_member
from tolaria_bus.oona.examining import Contents, Examiner
from tolaria_bus.oona.opening import Opener, Refused
from tolaria_bus.oona.sealing import SIGNATURE
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.oona.where import Where

PAGE: Final = 32
"""Letters read at once: each may have a mebibyte."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry of a dead-letter stream.

    Attributes:
        dead: Key of the dead-letter stream.
        entry_id: Its id there.
        letter: What it says; ``None`` if it can't be read.
        doubt: Why it can't be read or isn't believed; empty if all is well.
        contents: What the dead entry held; ``None`` without a letter.
        last_ms: When a group last gave the entry up, by the server's clock; ``None`` if that isn't
            known any more. Later than ``letter.dead_at`` where many groups read a stream.
    """

    dead: str
    entry_id: str
    letter: DeadLetter | None
    doubt: str = ""
    contents: Contents | None = None
    last_ms: int | None = None

    @property
    def reason(self) -> str:
        """The letter's, ``unreadable`` without one."""
        return "unreadable" if self.letter is None else self.letter.reason


class LetterBox:
    """The letters of one dead-letter stream.

    Args:
        client: Any client.
        dead: Key of the dead-letter stream.
        examiner: Knows the keys.
    """

    def __init__(self, client: Redis, dead: str, examiner: Examiner) -> None:
        self.dead: Final = dead
        self._client = client
        self._examiner = examiner
        self._signed = examiner.ring.enabled
        self._believing = Opener(examiner.ring, None)
        self._unbelieving = Opener(KeyRing(), None)

    async def all(
        self, where: Where | None = None, *, after: str = "-", page: int = PAGE
    ) -> AsyncGenerator[Found, None]:
        """Yield letters, oldest first; those that come meanwhile too.

        Args:
            where: Only such letters.
            after: Only later ones than this entry id: a cursor.
            page: So many are read at once.

        Raises:
            RedisError: redis-py's.
        """
        start = after if after == "-" else f"({after}"
        while True:
            entries: Any = await self._client.xrange(self.dead, min=start, count=page)
            for found in await self._read(entries):
                if where is None or where.matches(found):
                    yield found
            if len(entries) < page:
                return
            start = f"({entries[-1][0].decode()}"

    async def get(self, entry_id: str) -> Found | None:
        """Return the letter with this entry id, if it is there. Raises redis-py's errors."""
        entries: Any = await self._client.xrange(self.dead, min=entry_id, max=entry_id, count=1)
        return next(iter(await self._read(entries)), None)

    async def _read(self, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Found]:
        read = [(key.decode(), *self._open(key.decode(), fields)) for key, fields in entries]
        members = [seen_member(letter) for _, letter, _ in read if letter is not None]
        scores: Any = []
        if members:
            scores = await self._client.zmscore(seen_key(self.dead), members)
        last = dict(zip(members, scores, strict=True))
        found = []
        for entry_id, letter, doubt in read:
            if letter is None:
                found.append(Found(self.dead, entry_id, None, doubt))
                continue
            score = last[seen_member(letter)]
            contents = self._examiner.examine(letter)
            last_ms = None if score is None else int(score)
            found.append(Found(self.dead, entry_id, letter, doubt, contents, last_ms))
        return found

    def _open(self, entry_id: str, fields: Mapping[bytes, bytes]) -> tuple[DeadLetter | None, str]:
        doubt = ""
        try:
            message = self._believing.open(self.dead, entry_id, fields).message
        except Refused as refused:
            doubt = str(refused)
            if not self._signed:
                return None, doubt
            try:
                message = self._unbelieving.open(self.dead, entry_id, fields).message
            except Refused as unreadable:
                return None, str(unreadable)
        if not isinstance(message, DeadLetter):
            return None, f"type: a {message.DESCRIPTOR.name} is no dead letter"
        if not self._signed and SIGNATURE in fields:
            doubt = "signature: the letter is signed, and no key is at hand to check it"
        return message, doubt
