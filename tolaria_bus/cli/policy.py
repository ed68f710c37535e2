"""``tolaria-bus policy``: switch the policy by which Tamiyo answers, while runs go on."""

from __future__ import annotations

import time
from typing import Annotated, Any

import anyio
import orjson
import typer

from tolaria_bus.cli.lazy import command
from tolaria_bus.cli.options import RedisOption, RunDirOption, RunOption


def policy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="heuristic, continue, or one of a package's.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTION=VALUE]...", help="Of the policy.", show_default=False),
    ] = None,
    fleet: Annotated[bool, typer.Option("--fleet", help="For every run on the server.")] = False,
    run: RunOption = None,
    run_dir: RunDirOption = None,
    redis: RedisOption = None,
) -> None:
    """Switch the policy by which Tamiyo answers a run, or with --fleet all of them.

    Every Tamiyo of the server takes it, also one that starts later. What policies do not exist or
    take other options is told on the emergency stream.

    Example: policy heuristic --run digits patience=6 grow=false
    """
    from tolaria_bus.cli.follow import BLOCK, reach
    from tolaria_bus.cli.locate import Asked, locate, only_run
    from tolaria_bus.cli.who import live_runs, user_name
    from tolaria_bus.cli.words import ComposeError, assignments
    from tolaria_bus.configured import key_ring
    from tolaria_bus.leyline import PolicyUpdate
    from tolaria_bus.oona.sealing import seal
    from tolaria_bus.settings import load
    from tolaria_bus.tamiyo.updates import KEPT

    if fleet and run is not None:
        raise ComposeError("--fleet is every run; leave out --run")
    options = assignments("policy", words or [])
    settings, _ = load()
    place = locate(Asked(redis=redis, run_dir=run_dir, run=run), settings)
    ring = key_ring(settings)

    async def send() -> str:
        async with reach(place.url, name="tolaria-policy", block=BLOCK) as client:
            target = ""
            if not fleet:
                known = [] if place.run else await live_runs(client, place.streams)
                target = place.run or only_run(known, place)
            update = PolicyUpdate(
                version=1,
                policy_id=name,
                training_run_id=target,
                payload=orjson.dumps(options) if options else b"",
            )
            update.issued_at.FromNanoseconds(time.time_ns())
            stream = place.streams.policies
            fields: Any = seal(update, stream=stream, source=f"operator/{user_name()}", ring=ring)
            await client.xadd(stream, fields, maxlen=KEPT, approximate=True)
            return target

    target = anyio.run(send)
    print(f"SENT policy {name} for {target or 'every run'}")


def build() -> Any:
    """Build the command."""
    return command(policy, "policy")
