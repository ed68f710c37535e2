"""What the settings say, as the objects of the rooms below that know no settings themselves."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from tolaria_bus.oona.connection import is_local
from tolaria_bus.oona.copies import Copies
from tolaria_bus.oona.trust import KeyRing
from tolaria_bus.settings import SettingError, Settings

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

    from tolaria_bus.safety.endpoint import Endpoint

COMPAT_SECRET: Final = "ESPER_LEYLINE_SECRET"  # noqa: S105 - the name of a variable


def key_ring(settings: Settings) -> KeyRing:
    """The key ring that ``signing_keys`` names; empty where signing is off.

    Raises:
        SettingError: A key is malformed.
    """
    if settings.signing_keys is None:
        return KeyRing()
    try:
        return KeyRing.parse(settings.signing_keys.get_secret_value())
    except ValueError as error:
        raise SettingError(f"setting signing_keys: {error}") from None


def check_trust(settings: Settings, ring: KeyRing, url: str, what: str = "steer this run") -> str:
    """Decide whether unsigned messages are taken from a server.

    Args:
        settings: ``allow_unsigned``: from any.
        ring: Where signing is on, all is well.
        url: The server.
        what: Whoever reaches it can do this.

    Returns:
        A warning for people, or nothing where signing is on.

    Raises:
        SettingError: Signing is off, and others than this machine can reach the server.
    """
    if ring.enabled:
        return ""
    if not is_local(url) and not settings.allow_unsigned:
        raise SettingError(
            "setting signing_keys: none, and the server isn't on this machine: set "
            "TOLARIA_SIGNING_KEYS, or TOLARIA_ALLOW_UNSIGNED=1 to take commands from anybody there"
        )
    return f"signing is off: whoever reaches the server can {what} (TOLARIA_SIGNING_KEYS)"


def compat_secret(settings: Settings) -> bytes | None:
    """The secret of envelopes with fields 1 to 3; ``None`` where those aren't taken.

    Raises:
        SettingError: They are to be taken, and there is none.
    """
    if not settings.compat_envelopes:
        return None
    secret = os.environ.get(COMPAT_SECRET, "")
    if not secret:
        raise SettingError(
            f"setting compat_envelopes = True: {COMPAT_SECRET} is not set in the environment; "
            "it is the secret that those envelopes are signed with"
        )
    return secret.encode()


def copies(settings: Settings) -> Copies | None:
    """The copies that what may not be lost must have; ``None`` where the server is enough."""
    if not settings.wait_replicas and not settings.wait_on_disk:
        return None
    return Copies(settings.wait_replicas, on_disk=settings.wait_on_disk)


def metrics_endpoint(
    stack: ExitStack, settings: Settings, registry: CollectorRegistry
) -> Endpoint | None:
    """Serve metrics and health where the settings say so, until the stack is closed.

    Raises:
        SettingError: It can't listen there.
    """
    if settings.metrics_port is None:
        return None
    # Here: who only sends a command has no use for an HTTP server and a log.
    import structlog

    from tolaria_bus.safety.endpoint import Endpoint

    host, port = settings.metrics_host, settings.metrics_port
    try:
        endpoint = stack.enter_context(Endpoint(host, port, registry))
    except OSError as error:
        text = f"can't listen at {host}: {error.strerror or error}"
        raise SettingError(f"setting metrics_port = {port}: {text}") from None
    structlog.get_logger().info("metrics", address=f"{endpoint.url}/metrics")
    return endpoint
