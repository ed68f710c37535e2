"""The order in which a fence applies what waits, and that nothing posted is ever lost."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.leyline import AdaptationCommand, CommandType
from tolaria_bus.tolaria.control.mailbox import URGENT, Delivery, Mailbox, in_order


def delivery(kind: str, source: str = "ann", priority: int = 2, name: str = "") -> Delivery:
    command = AdaptationCommand(
        command_id=name or f"{kind}-{source}", command_type=CommandType.Value(f"COMMAND_{kind}")
    )
    return Delivery(command, command.SerializeToString(), source=source, priority=priority)


def ids(deliveries: list[Delivery]) -> list[str]:
    return [item.command.command_id for item in deliveries]


def test_emergency_comes_first_then_stop_and_pause_then_the_rest() -> None:
    waiting = [
        delivery("LEARNING_RATE", name="rate"),
        delivery("PAUSE", name="pause"),
        delivery("EMERGENCY", name="emergency"),
        delivery("STOP", name="stop"),
    ]
    assert ids(in_order(waiting)) == ["emergency", "pause", "stop", "rate"]


def test_a_higher_priority_goes_before_another_source_but_not_before_its_own() -> None:
    waiting = [
        delivery("SEED", "ann", 2, "ann-1"),
        delivery("SEED", "bob", 3, "bob-1"),
        delivery("CHECKPOINT", "ann", 4, "ann-2"),
    ]
    assert ids(in_order(waiting)) == ["bob-1", "ann-1", "ann-2"]


kinds = st.sampled_from(["SEED", "PAUSE", "STOP", "EMERGENCY", "RESUME", "LEARNING_RATE"])


@given(st.lists(st.tuples(kinds, st.sampled_from("abc"), st.integers(1, 4)), max_size=12))
def test_each_source_keeps_its_order_and_nothing_is_lost(spec: list[tuple[str, str, int]]) -> None:
    waiting = [delivery(kind, src, prio, str(n)) for n, (kind, src, prio) in enumerate(spec)]
    ordered = in_order(waiting)
    assert sorted(ids(ordered)) == sorted(ids(waiting))
    for source in "abc":
        plain = [item for item in ordered if item.source == source]
        numbers = [int(x.command.command_id) for x in plain if x.command.command_type not in URGENT]
        assert numbers == sorted(numbers)
    urgent = [item.command.command_type in URGENT for item in ordered]
    assert urgent == sorted(urgent, reverse=True)


def test_waiting_is_set_by_a_post_and_cleared_by_a_take() -> None:
    mailbox = Mailbox()
    assert not mailbox.waiting
    mailbox.post(delivery("PAUSE"))
    waiting = [mailbox.waiting]
    assert ids(mailbox.take()) == ["PAUSE-ann"]
    waiting.append(mailbox.waiting)
    assert waiting == [True, False]
    assert mailbox.take() == []


def test_a_stop_request_stays_visible_and_keeps_its_first_reason() -> None:
    mailbox = Mailbox()
    mailbox.request_stop("signal")
    mailbox.request_stop("lease")
    mailbox.take()
    assert mailbox.waiting
    assert mailbox.stop_reason == "signal"


def test_a_waiting_trainer_is_woken_by_a_post() -> None:
    mailbox = Mailbox()
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(mailbox.wait(30)))
    thread.start()
    mailbox.post(delivery("RESUME"))
    thread.join(30)
    assert woken == [True]


def test_nothing_is_lost_between_posting_threads_and_the_taker() -> None:
    mailbox = Mailbox()
    posted = 4 * 250

    def post(source: str) -> None:
        for number in range(250):
            mailbox.post(delivery("SEED", source, name=f"{source}{number}"))

    threads = [threading.Thread(target=post, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    taken: list[Delivery] = []
    while len(taken) < posted:
        assert mailbox.wait(30)
        taken += mailbox.take()
    for thread in threads:
        thread.join()
    assert len(set(ids(taken))) == posted
