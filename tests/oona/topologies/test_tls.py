"""A server is believed for its certificate, and a client may have to show one."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.oona.bus import CONTROL, Inbox, command, consuming, finished, send
from tests.oona.topologies.terminator import terminating
from tolaria_bus.oona.connection import ServerUnreachable, check, connect
from tolaria_bus.oona.embedded import EmbeddedServer


@dataclass
class Trust:
    """Files of an authority that is believed, of another, and of a client's certificate."""

    authority: trustme.CA
    ca: Path
    other_ca: Path
    client: Path

    def server(self, *, asks: bool = False) -> ssl.SSLContext:
        """What a server at 127.0.0.1 needs; ``asks``: for a certificate of its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        if asks:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    folder = tmp_path_factory.mktemp("trust")
    authority, other = trustme.CA(), trustme.CA()
    found = Trust(authority, folder / "ca.pem", folder / "other.pem", folder / "client.pem")
    authority.cert_pem.write_to_path(str(found.ca))
    other.cert_pem.write_to_path(str(found.other_ca))
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(found.client))
    return found


@pytest.fixture
def socket_path(server: EmbeddedServer, redis_url: str) -> str:
    return redis_url.removeprefix("unix://")


@pytest.fixture
async def redis_url(server: EmbeddedServer) -> str:
    async with connect(server.url, name="tests-flush") as client:
        await client.flushall()
    return server.url


async def test_the_bus_works_over_tls(trust: Trust, socket_path: str) -> None:
    async with terminating(trust.server(), socket_path) as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={trust.ca}"
        assert (await check(url)).name == "valkey"
        inbox = Inbox(ack=True)
        async with connect(url, name="tests") as client, consuming(url, inbox):
            await send(client, CONTROL, command())
            await inbox.wait_for(1)
            await finished(client)


@pytest.mark.parametrize("options", ["?ssl_ca_certs={other}", ""])
async def test_a_server_that_nobody_vouches_for_is_refused_in_one_line(
    options: str, trust: Trust, socket_path: str
) -> None:
    async with terminating(trust.server(), socket_path) as port:
        with pytest.raises(ServerUnreachable, match="CERTIFICATE_VERIFY_FAILED") as error:
            await check(f"rediss://:secret@127.0.0.1:{port}{options.format(other=trust.other_ca)}")
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


async def test_a_certificate_for_another_host_is_refused_unless_it_may_be(
    trust: Trust, socket_path: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.authority.issue_cert("elsewhere.example").configure_cert(context)
    async with terminating(context, socket_path) as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={trust.ca}"
        with pytest.raises(ServerUnreachable, match="IP address mismatch"):
            await check(url)
        assert await check(f"{url}&ssl_check_hostname=false")


async def test_a_clients_certificate_is_shown(trust: Trust, socket_path: str) -> None:
    async with terminating(trust.server(asks=True), socket_path) as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={trust.ca}"
        with pytest.raises(ServerUnreachable):
            await check(url)
        assert await check(f"{url}&ssl_certfile={trust.client}&ssl_keyfile={trust.client}")
