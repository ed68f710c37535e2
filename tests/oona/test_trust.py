import base64
import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.oona.trust import Key, KeyRing, NonceWindow, parse_entry_id

SECRET = b"0123456789abcdef"
TEXT = "new:" + base64.b64encode(SECRET).decode()
STREAM = "oona:{digits}:control"


def nonce(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_the_signature_is_the_base64_of_hmac_sha256() -> None:
    key_id, signature = KeyRing.parse(TEXT).sign(b"bytes")
    assert key_id == "new"
    assert signature == base64.b64encode(hmac.new(SECRET, b"bytes", hashlib.sha256).digest())


def test_the_first_key_signs_and_all_verify() -> None:
    old = KeyRing.parse("old:b2xkIHNlY3JldA==")
    both = KeyRing.parse(f"{TEXT}, old:b2xkIHNlY3JldA==")
    assert both.signing_key == "new"
    key_id, signature = old.sign(b"payload")
    assert both.verify(key_id, b"payload", signature)


def test_a_key_verifies_only_what_it_signed() -> None:
    ring = KeyRing.parse(f"{TEXT},old:b2xkIHNlY3JldA")
    _, signature = ring.sign(b"payload")
    assert ring.verify("new", b"payload", signature)
    assert not ring.verify("new", b"payloae", signature)
    assert not ring.verify("old", b"payload", signature)
    assert not ring.verify("gone", b"payload", signature)
    assert not ring.verify("new", b"payload", b"")
    assert not ring.verify("new", b"payload", "ü".encode())


def test_no_keys_is_signing_off() -> None:
    ring = KeyRing.parse("  ")
    assert not ring.enabled
    with pytest.raises(ValueError, match="signing is off"):
        ring.sign(b"payload")


def test_base64_may_be_url_safe_and_without_padding() -> None:
    secret = b"\xfb\xff\xfe-"
    written = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    expected = KeyRing({"a": secret}).sign(b"x")
    assert KeyRing.parse(f"a:{written}").sign(b"x") == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nocolon", "key 1: must be id:base64secret"),
        (f"{TEXT},:AAAA", "key 2: must be id:base64secret"),
        ("a b:AAAA", "key 1: must be id"),
        ("a:", "key 'a': the secret is empty"),
        ("a:not base64!", "key 'a': the secret isn't base64"),
        ("a:AAAAA", "key 'a': the secret isn't base64"),
        ("a:ümlaut", "key 'a': the secret isn't base64"),
        (f"{TEXT},{TEXT}", "key 2: id 'new' is given twice"),
    ],
)
def test_a_wrong_ring_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError) as error:
        KeyRing.parse(text)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@given(secret=st.binary(min_size=1, max_size=200), payload=st.binary(max_size=1000))
def test_a_signature_is_what_the_standard_library_makes(secret: bytes, payload: bytes) -> None:
    expected = base64.b64encode(hmac.digest(secret, payload, "sha256"))
    assert Key(secret).sign(payload) == expected
    assert Key(secret).made(payload, expected)
    assert not Key(secret).made(payload + b"x", expected)


def test_secrets_are_not_shown() -> None:
    assert repr(KeyRing.parse(TEXT)) == "KeyRing(new)"
    with pytest.raises(ValueError) as error:
        KeyRing.parse("a:c2VjcmV0!")
    assert "c2VjcmV0" not in str(error.value)


def test_the_same_entry_again_is_a_redelivery() -> None:
    window = NonceWindow()
    assert window.check(nonce(1), STREAM, parse_entry_id("1000-0"))
    assert window.check(nonce(1), STREAM, parse_entry_id("1000-0"))


@pytest.mark.parametrize(
    ("stream", "entry"), [(STREAM, "1000-1"), (STREAM, "1001-0"), ("oona:control", "1000-0")]
)
def test_the_same_nonce_in_another_entry_is_a_replay(stream: str, entry: str) -> None:
    window = NonceWindow()
    assert window.check(nonce(1), STREAM, parse_entry_id("1000-0"))
    assert not window.check(nonce(1), stream, parse_entry_id(entry))
    assert window.check(nonce(1), STREAM, parse_entry_id("1000-0"))


def test_a_restart_remembers(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    window = NonceWindow(path)
    window.check(nonce(1), STREAM, parse_entry_id("1000-0"))
    window.flush()
    # No close: as after a kill.
    again = NonceWindow(path)
    assert again.check(nonce(1), STREAM, parse_entry_id("1000-0"))
    assert not again.check(nonce(1), STREAM, parse_entry_id("2000-0"))
    again.close()
    window.close()


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    window = NonceWindow(path)
    window.check(nonce(1), STREAM, parse_entry_id("1000-0"))
    window.flush()
    assert path.stat().st_mode & 0o777 == 0o600
    window.close()


def test_a_torn_record_at_the_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    window = NonceWindow(path)
    window.check(nonce(1), STREAM, parse_entry_id("1000-0"))
    window.check(nonce(2), STREAM, parse_entry_id("1001-0"))
    window.close()
    os.truncate(path, path.stat().st_size - 7)
    again = NonceWindow(path)
    assert not again.check(nonce(1), STREAM, parse_entry_id("1002-0"))
    assert again.check(nonce(3), STREAM, parse_entry_id("1003-0"))
    again.close()
    third = NonceWindow(path)
    assert not third.check(nonce(3), STREAM, parse_entry_id("1004-0"))
    third.close()


def test_old_nonces_go_by_the_streams_highest_entry() -> None:
    window = NonceWindow()
    kept = window.KEPT_AT_LEAST
    for number in range(3 * kept):
        window.check(nonce(number), STREAM, (number, 0))
    assert len(window) == 3 * kept, "all are within 65 s of the highest"
    for wave in range(1, 10):
        for number in range(3 * kept):
            window.check(nonce(10**6 * wave + number), STREAM, (200_000 * wave + number, 0))
    assert len(window) <= 6 * kept + 1, "earlier waves are forgotten"
    assert not window.check(nonce(9 * 10**6), STREAM, (2_000_000, 0)), "the latest isn't"


def test_another_streams_time_prunes_nothing() -> None:
    window = NonceWindow()
    for number in range(3 * window.KEPT_AT_LEAST):
        window.check(nonce(number), STREAM, (1000, 0))
    for number in range(window.KEPT_AT_LEAST):
        window.check(nonce(10**6 + number), "oona:control", (99999999999, 0))
    assert not window.check(nonce(0), STREAM, (1000, 1))


def test_a_quiet_stream_keeps_no_other_streams_nonces() -> None:
    window = NonceWindow()
    window.check(nonce(10**6), "oona:control", (1000, 0))
    for number in range(100_000):
        window.check(nonce(number), STREAM, (number * 100, 0))
    assert len(window) < 4 * window.KEPT_AT_LEAST
    assert not window.check(nonce(10**6), "oona:control", (1001, 0))


def test_an_entry_redelivered_late_still_guards_its_nonce() -> None:
    window = NonceWindow()
    window.check(nonce(1), STREAM, parse_entry_id("9999999-0"))
    assert window.check(nonce(2), STREAM, parse_entry_id("1000-0")), (
        "read out of order, hours later"
    )
    assert not window.check(nonce(2), STREAM, parse_entry_id("1001-0"))


def test_the_file_doesnt_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    window = NonceWindow(path)
    for number in range(40_000):
        window.check(nonce(number), STREAM, parse_entry_id(f"{number * 1000}-0"))
        if number % 100 == 99:
            window.flush()
    assert len(window) <= 2 * window.KEPT_AT_LEAST
    assert path.stat().st_size < 20_000 * 40
    assert not window.check(nonce(39_999), STREAM, parse_entry_id("40000000-0"))
    window.close()
    again = NonceWindow(path)
    assert not again.check(nonce(39_999), STREAM, parse_entry_id("40000000-0"))
    again.close()


def test_a_disk_that_refuses_is_told_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    window = NonceWindow(folder / "nonces")
    with caplog.at_level(logging.WARNING):
        assert window.check(nonce(1), STREAM, parse_entry_id("1000-0"))
        assert window.check(nonce(2), STREAM, parse_entry_id("1000-1"))
        window.flush()
    assert window.unsaved == 2
    assert not window.check(nonce(1), STREAM, parse_entry_id("1001-0")), (
        "it still guards, in memory"
    )
    assert "nonces can't be kept" in caplog.text


def test_what_nobody_flushes_goes_to_the_file_by_and_by(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    window = NonceWindow(path)
    for number in range(5_000):
        window.check(nonce(number), STREAM, (1000, number))
    again = NonceWindow(path)
    assert not again.check(nonce(1), STREAM, (1001, 0))
    again.close()
    window.close()


def test_a_nonce_has_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="15 bytes, must have 16"):
        NonceWindow().check(bytes(15), STREAM, parse_entry_id("1-0"))


def test_entry_ids() -> None:
    assert parse_entry_id("1700000000000-7") == (1700000000000, 7)
    assert parse_entry_id(f"{2**64 - 1}-0") == (2**64 - 1, 0)


@pytest.mark.parametrize("text", ["", "-", "1", "1-", "-1", "1-2-3", "a-1", "٣-1", f"{2**64}-0"])
def test_what_is_no_entry_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^entry id"):
        parse_entry_id(text)


@given(st.text(max_size=50))
def test_reading_an_entry_id_is_total(text: str) -> None:
    try:
        parse_entry_id(text)
    except ValueError as error:
        assert "entry id" in str(error)  # noqa: PT017 - either way is right


@given(st.text(max_size=60))
def test_reading_a_key_ring_is_total(text: str) -> None:
    try:
        KeyRing.parse(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either way is right
