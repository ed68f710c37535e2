import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tolaria_bus.oona.cluster_keys import slot_of_key
from tolaria_bus.oona.dead_letters import begun_key, seen_key
from tolaria_bus.oona.streams import (
    Streams,
    beside,
    check_run_id,
    dead_letters_of,
    groups_of,
    hash_tag,
    run_of,
    settled_of,
)

STREAMS = Streams()
OF_A_RUN = [
    STREAMS.control,
    STREAMS.state,
    STREAMS.telemetry,
    STREAMS.outcomes,
    STREAMS.reports,
    STREAMS.dead,
    STREAMS.lease,
    STREAMS.status,
    STREAMS.settled,
]


@pytest.mark.parametrize("run", ["a", "digits", "A-Z_0.9", "x" * 64, "..", "-"])
def test_a_good_run_id_is_returned(run: str) -> None:
    assert check_run_id(run) == run


@pytest.mark.parametrize("run", ["", "x" * 65, "a b", "a/b", "{a}", "a:b", "a\n", "é", "a*"])
def test_a_bad_run_id_is_refused_in_one_line(run: str) -> None:
    with pytest.raises(ValueError, match=r"^run id .*: must be 1 to 64 of A-Z") as error:
        check_run_id(run)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError):
        STREAMS.control(run)


def test_keys_are_those_of_the_wire() -> None:
    assert [name("digits") for name in OF_A_RUN] == [
        "oona:{digits}:control",
        "oona:{digits}:state",
        "oona:{digits}:telemetry",
        "oona:{digits}:outcomes",
        "oona:{digits}:reports",
        "oona:{digits}:dead",
        "oona:{digits}:lease",
        "oona:{digits}:status",
        "oona:{digits}:settled",
    ]
    assert STREAMS.fleet_control == "oona:control"
    assert STREAMS.emergency == "oona:emergency"
    assert STREAMS.runs == "oona:runs"


def test_the_prefix_is_a_setting() -> None:
    assert Streams("team:a").control("r") == "team:a:{r}:control"
    assert Streams("team:a").emergency == "team:a:emergency"


@pytest.mark.parametrize("prefix", ["", "a{", "a}b", "a b", "x" * 65])
def test_a_prefix_that_would_move_keys_to_other_slots_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"^prefix"):
        Streams(prefix)


def test_dead_letters_of_a_run_s_streams_meet_in_one() -> None:
    for name in OF_A_RUN:
        assert dead_letters_of(name("digits")) == STREAMS.dead("digits")
    assert Streams("p").dead_letters_of("p:{r}:state") == "p:{r}:dead"


def test_dead_letters_of_shared_streams_are_apart() -> None:
    assert dead_letters_of("oona:control") == "{oona:control}:dead"
    assert dead_letters_of("oona:emergency") == "{oona:emergency}:dead"


def test_the_run_of_a_key() -> None:
    assert run_of("oona:{digits}:control") == "digits"
    assert run_of("oona:control") is None
    assert run_of("{oona:control}:dead") is None


async def test_dead_letters_are_in_the_slot_of_their_source(redis: Redis) -> None:
    for source in (STREAMS.control("digits"), STREAMS.fleet_control, STREAMS.emergency):
        slots = [await redis.cluster("KEYSLOT", key) for key in (source, dead_letters_of(source))]
        assert slots[0] == slots[1]


async def test_all_keys_of_a_run_are_in_one_slot(redis: Redis) -> None:
    slots = {await redis.cluster("KEYSLOT", name("digits")) for name in OF_A_RUN}
    assert len(slots) == 1


KEYS = st.one_of(
    st.sampled_from(
        [
            "oona:{r}:control",
            "oona:emergency",
            "{oona:control}:dead",
            "{orders}:events",
            "orders:{eu}:v2",
            "shop:{eu}:orders:new",
            "plain",
            "a:dead",
            "{}x",
            "a}b",
        ]
    ),
    st.text("ab:{}", min_size=1, max_size=12),
)


@given(key=KEYS)
def test_what_belongs_to_a_stream_is_in_its_slot(key: str) -> None:
    """Any key of anybody's: scripts take them together."""
    if hash_tag(key) == key and "}" in key:
        with pytest.raises(ValueError, match="leave room for none"):
            beside(key, "x")
        return
    for name in (dead_letters_of, settled_of, groups_of, seen_key, lambda key: begun_key(key, "g")):
        assert slot_of_key(name(key)) == slot_of_key(key), name(key)
    assert slot_of_key(hash_tag(key)) == slot_of_key(key)
