"""Entries with JSON that no friend would write. See ``hostile``."""

from __future__ import annotations

import random

import orjson

MEGABYTE = 1 << 20

Fields = list[tuple[bytes, bytes]]


class HostileJson:
    """Entries with a ``json`` field.

    Args:
        source: Of all that is random.
    """

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def any_json(self) -> Fields:
        """JSON of any shape, under names of which some are fields."""
        return [(b"json", orjson.dumps(self._value(4)))]

    def bad_json(self) -> Fields:
        """Text that is nearly JSON, or that says what JSON can't."""
        text = self._random.choice(
            (
                b"", b"{", b"null", b"NaN", b'{"version":NaN}', b'{"version":Infinity}',
                b'{"version":1e999}', b'{"version":-1}', b'{"version":1.5}', b'{"version":"1e3"}',
                b'{"version":1,"version":2}', b'{"commandId":"a","command_id":"b"}',
                b'{"commandId":"\\ud800"}', b'{"commandId":"\xed\xa0\x80"}',
                b'{"commandId":"\xff"}',
                b'\xef\xbb\xbf{"commandType":"PAUSE"}', '{"commandType":"PAUSE"}'.encode("utf-16"),
                b'{"commandType":"PAUSE",}', b"{'commandType':'PAUSE'}", b'{"commandType":true}',
                b'{"commandType":[]}', b'{"commandType":5}', b'{"commandType":"PAUSE"} x',
                b'{"issuedAt":"9999-99-99T00:00:00Z"}', b'{"issuedAt":{}}', b'{"annotations":[1]}',
                b'{"annotations":{"a":1}}', b'{"rollbackPayload":1}', b'{"rollbackPayload":[]}',
                b'{"seedOperation":{},"circuitBreaker":{}}', b'{"__proto__":{"x":1}}',
                b'{"commandId":"' + b"\\u0000" * 500 + b'"}', b'{"version":' + b"9" * 400 + b"}",
            )
        )  # fmt: skip
        return [(b"json", text)]

    def megabyte_of_json(self) -> Fields:
        """Just under the limit, all of it one text."""
        text = "x" * (MEGABYTE - 500)
        return [(b"json", orjson.dumps({"commandType": "PAUSE", "issuedBy": text}))]

    def many_json_values(self) -> Fields:
        """Very many values in one text."""
        item = self._random.choice((b"0", b"{}", b"[]", b'"x"'))
        values = b",".join([item] * ((MEGABYTE - 500) // (len(item) + 1)))
        return [(b"json", b'{"rollbackPayload":{"a":[' + values + b"]}}")]

    def deep_json(self) -> Fields:
        """As deep as a megabyte goes, or just too deep."""
        depth = self._random.choice((33, 900, 1030, MEGABYTE // 8))
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        return [(b"json", b'{"rollbackPayload":' + nested + b"}")]

    def huge_json_number(self) -> Fields:
        """A number of a megabyte."""
        sign = self._random.choice((b"", b"-", b"0.", b"1e"))
        return [(b"json", b'{"version":' + sign + b"9" * (MEGABYTE - 100) + b"}")]

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randint(0, most))

    def _value(self, depth: int) -> object:
        names = (
            "commandType", "commandId", "version", "issuedAt", "seedOperation", "annotations",
            "rollbackPayload", "emergency", "level", "values", "parameters", "x", "",
        )  # fmt: skip
        kind = self._random.randrange(8 if depth else 6)
        if kind == 0:
            return self._random.choice((None, True, False, 0, -1, 1 << 40, 1.5, 1e300))
        if kind in (1, 2):
            return self._random.choice(("", "PAUSE", "pause", "é", "\x00", "2030-01-01T00:00:00Z"))
        if kind in (3, 4, 5):
            return {
                self._random.choice(names): self._value(max(depth - 1, 0))
                for _ in range(self._random.randint(0, 4 if depth else 0))
            }
        return [self._value(depth - 1) for _ in range(self._random.randint(0, 3))]
