"""One line says where the server is; a wrong one is refused in one line without its password."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolaria_bus.oona.connection import BadUrl, connect, is_local, redacted
from tolaria_bus.oona.url import ServerUrl, parse

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("unix:///run/valkey.sock", ServerUrl("one", path="/run/valkey.sock")),
        (
            "unix://ann:p%40ss@/run/a%20b.sock?db=2",
            ServerUrl("one", path="/run/a b.sock", username="ann", password="p@ss", db=2),
        ),
        ("redis://", ServerUrl("one", addresses=(("localhost", 6379),))),
        ("redis://host:1/3", ServerUrl("one", addresses=(("host", 1),), db=3)),
        ("redis://:pw@[::1]:7", ServerUrl("one", addresses=(("::1", 7),), password="pw")),
        (
            "redis://a:[pw@h",
            ServerUrl("one", addresses=(("h", 6379),), username="a", password="[pw"),
        ),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no",
            ServerUrl(
                "one",
                addresses=(("h", 6379),),
                tls=True,
                tls_options={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
            ),
        ),
        (
            "redis+sentinel://ann:pw@h1,[::1]:5/name/3?sentinel_username=s&sentinel_password=p%26q",
            ServerUrl(
                "sentinel",
                addresses=(("h1", 26379), ("::1", 5)),
                username="ann",
                password="pw",
                service="name",
                db=3,
                sentinel_username="s",
                sentinel_password="p&q",
            ),
        ),
        (
            "rediss+cluster://:pw@h1:7000,h2:7001",
            ServerUrl("cluster", addresses=(("h1", 7000), ("h2", 7001)), password="pw", tls=True),
        ),
    ],
)
def test_a_url_says_where_and_how(url: str, says: ServerUrl) -> None:
    assert parse(url) == says


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must begin with unix://, redis:// or rediss://"),
        ("http://host", "must begin with"),
        ("redis:host", "must begin with"),
        ("unix://host/path", "has a host; must be unix:///absolute/path"),
        ("unix://", "must be unix:///absolute/path"),
        ("redis://host:port", "can't be read"),
        ("redis://host:99999", "can't be read"),
        ("redis://host/zero", "the path must be a database number"),
        ("redis://host?db=zero", "option db must be a database number"),
        ("redis://host?decode_responses=true", "unknown option 'decode_responses'; allowed: db"),
        ("redis://:pw#1@host", "a '#' must be written as %23"),
        ("redis://[::1", "can't be read"),
        ("redis://h1:1,h2:2", "several hosts are redis+sentinel:// or redis+cluster://"),
        ("redis+sentinel://h1:1,h2:2", "must name the master: redis+sentinel://host:26379/NAME"),
        ("redis+sentinel:///name", "must name hosts"),
        ("redis+sentinel://h1,,h2/name", "must name hosts"),
        ("redis+sentinel://h1/name/x", "the path must be a database number"),
        ("redis+sentinel://h1:x/name", "can't be read"),
        ("redis+cluster://", "must name hosts"),
        ("redis+cluster://h1/1", "a cluster has database 0 alone"),
        ("redis+cluster://h1/x", "the path must be a database number"),
        ("redis+cluster://h1?sentinel_password=p", "unknown option; allowed: ssl_ca_certs"),
        ("rediss://h?ssl_check_hostname=perhaps", "ssl_check_hostname must be true or false"),
        ("rediss://h?ssl_cert_reqs=perhaps", "ssl_cert_reqs must be one of none, optional"),
        ("rediss://h?ssl_ca_certs=/no/such/file", "ssl_ca_certs '/no/such/file': no such file"),
    ],
)
def test_a_bad_url_is_refused_in_one_line(url: str, says: str) -> None:
    with pytest.raises(BadUrl) as error:
        connect(url, name="test")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:s3cret@host:1/0", "redis://ann:***@host:1/0"),
        ("redis://:s3cret@host", "redis://:***@host"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis+cluster://ann:s3cret@h1:1,h2:2", "redis+cluster://ann:***@h1:1,h2:2"),
        ("redis+cluster://h1:1,h2:2", "redis+cluster://h1:1,h2:2"),
        (
            "redis+sentinel://:s3cret@h/n?sentinel_username=u&sentinel_password=s3cret",
            "redis+sentinel://:***@h/n?sentinel_username=u&***",
        ),
        (
            "rediss+sentinel://h/n?ssl_ca_certs=/a&sentinel_password=s3cret&x=s3cret",
            "rediss+sentinel://h/n?ssl_ca_certs=/a&***",
        ),
        ("redis+sentinel://h:1/n?sentinel_password=1@s3cret", "redis+sentinel://h:***@***"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:s3cret@host/x",
        "http://ann:s3cret@host",
        "redis://a:s3cret@h:x",
        "redis://a:s3cret#1@h",
        "redis://a:s3cret/1@h",
        "redis://a:1?s3cret=2@h",
        "redis://a:s3cret?x@h",
        "redis+cluster://a:s3cret@h1:1,h2:x",
        "redis+sentinel://h:1?sentinel_password=s3cret",
        "redis+sentinel://h:1/n?sentinel_password=1&s3cret",
        "redis+sentinel://h:1/n?sentinel_password=1&s3cret=2",
        "redis+sentinel://h:1/n?sentinel%5Fpassword=1#s3cret",
    ],
)
def test_a_refusal_shows_no_password(url: str) -> None:
    with pytest.raises(BadUrl) as error:
        connect(url, name="test")
    assert SECRET not in str(error.value)


@given(st.text())
def test_whatever_it_is_it_is_read_or_refused(text: str) -> None:
    for url in (text, f"redis+sentinel://{text}", f"redis+cluster://a:{text}@h"):
        redacted(url)
        with contextlib.suppress(BadUrl):
            parse(url)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("unix:///run/valkey.sock", True),
        ("redis://localhost:6379", True),
        ("redis://127.0.0.1", True),
        ("redis://127.9.9.9", True),
        ("redis://[::1]:6379", True),
        ("redis://", True),
        ("redis://0.0.0.0", False),
        ("redis://192.168.0.1", False),
        ("rediss://valkey:6379", False),
        ("redis://localhost.example.org", False),
        ("redis+sentinel://localhost:1,127.0.0.1:2/name", True),
        ("redis+sentinel://localhost:1,valkey:2/name", False),
        ("redis+cluster://127.0.0.1:1,[::1]:2", True),
        ("redis+cluster://127.0.0.1:1,192.168.0.1:2", False),
        ("rediss+cluster://user@localhost@192.168.0.1:2", False),
    ],
)
def test_what_only_this_machine_reaches(url: str, local: bool) -> None:
    assert is_local(url) is local
