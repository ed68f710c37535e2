"""Whatever an entry holds, opening it gives a message or a refusal, and nothing else."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.oona.entries import (
    COMPAT_SECRET,
    CONTROL,
    EMERGENCY,
    ENTRY,
    OFF,
    RING,
    TELEMETRY,
    Fields,
    compat,
    opener,
    sealed,
)
from tolaria_bus.oona.envelope import (
    REFUSED_REASONS,
    Opened,
    Refused,
)
from tolaria_bus.oona.trust import Key

NAMES = st.sampled_from([b"payload", b"signature", b"json", b"other"])
READERS = [opener(), opener(OFF), opener(compat_secret=COMPAT_SECRET)]


def open_or_refuse(entry: str | bytes, fields: Fields, stream: str = CONTROL) -> None:
    for reader in READERS:
        try:
            assert isinstance(reader.open(stream, entry, fields), Opened)
        except Refused as refused:
            assert refused.reason in REFUSED_REASONS  # noqa: PT017 - either way is right


@given(
    entry=st.one_of(st.just(ENTRY), st.text(max_size=30), st.binary(max_size=30)),
    fields=st.dictionaries(NAMES, st.binary(max_size=200)),
)
def test_any_bytes_are_opened_or_refused(entry: str | bytes, fields: Fields) -> None:
    open_or_refuse(entry, fields)


@given(st.data())
def test_any_mutation_is_opened_or_refused(data: st.DataObject) -> None:
    ring = data.draw(st.sampled_from([RING, OFF]))
    fields = sealed(ring=ring) if data.draw(st.booleans()) else compat()
    payload = bytearray(fields[b"payload"])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    mutated = bytes(payload[:cut]) + data.draw(st.binary(max_size=20)) + bytes(payload[cut:])
    # Signed by a sender who has the keys and sends nonsense: it gets past the signature.
    signed = data.draw(
        st.sampled_from([RING.sign(mutated)[1], Key(COMPAT_SECRET).sign(mutated), b""])
    )
    open_or_refuse(ENTRY, {b"payload": mutated, b"signature": signed})


# Some that exist, of several types, at several depths, and one that doesn't.
FIELD_NAMES = [
    "version",
    "commandType",
    "level",
    "issuedAt",
    "seedOperation",
    "operation",
    "parameters",
    "values",
    "metrics",
    "x",
    "rollback_payload",
    "annotations",
    "attributes",
    "payloadChecksum",
    "learningRate",
    "factor",
    "events",
    "timestamp",
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELD_NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES, st.sampled_from([CONTROL, EMERGENCY, TELEMETRY, "oona:{r}:dead", "x"]))
def test_any_json_is_opened_or_refused(value: object, stream: str) -> None:
    try:
        text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # integers of more than 64 bits
        text = repr(value).encode("utf-8", "replace")
    open_or_refuse(ENTRY, {b"json": text}, stream)
