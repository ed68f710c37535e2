"""``tolaria-bus send``: the words of each command. What they mean is ``compose_command``'s."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from tolaria_bus.cli import compose_command as compose
from tolaria_bus.cli.lazy import build_group, command
from tolaria_bus.cli.options import (
    Sending,
    context_parameter,
    own_parameters,
    sends,
    shared_parameters,
    with_parameters,
)
from tolaria_bus.leyline import AdaptationCommand

Group = Annotated[str | None, typer.Option(metavar="NAME", help="One parameter group only.")]
Label = Annotated[str | None, typer.Argument(metavar="LABEL", help="Its label, for people.")]


def pause() -> AdaptationCommand:
    """Hold the run at its next fence; it can still be steered."""
    return compose.simple("pause")


def resume() -> AdaptationCommand:
    """Go on after a pause or a halt."""
    return compose.simple("resume")


def stop() -> AdaptationCommand:
    """End the run in good order: finish the step, checkpoint, flush."""
    return compose.simple("stop")


def checkpoint(
    label: Label = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it until removed by hand.")] = False,
) -> AdaptationCommand:
    """Make the present state durable."""
    return compose.checkpoint(label, pin=pin)


def rollback(
    to_step: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The newest checkpoint up to step N.")
    ] = None,
    to_epoch: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The newest checkpoint up to epoch N.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="skip|replay",
            help="What to do with the batches since: leave them out (default), or repeat them.",
        ),
    ] = None,
    lr_factor: Annotated[
        float | None, typer.Option(metavar="F", help="Multiply learning rates by F, 0 < F <= 1.")
    ] = None,
) -> AdaptationCommand:
    """Go back to a checkpoint (by default the newest), on a new timeline."""
    return compose.rollback(to_step=to_step, to_epoch=to_epoch, data=data, lr_factor=lr_factor)


def lr(
    rate: Annotated[float | None, typer.Argument(metavar="RATE", help="The base rate.")] = None,
    factor: Annotated[
        float | None, typer.Option(metavar="F", help="Multiply the base rate by F instead.")
    ] = None,
    warmup_steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Get there over N steps, linearly.")
    ] = 0,
    group: Group = None,
) -> AdaptationCommand:
    """Change the base learning rate; the schedule goes on from it.

    Examples: send lr 0.01, send lr --factor 0.5 --warmup-steps 100
    """
    return compose.learning_rate(rate, factor=factor, warmup_steps=warmup_steps, group=group)


def optimizer(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME] NAME=VALUE...", show_default=False),
    ] = None,
    group: Group = None,
) -> AdaptationCommand:
    """Change hyperparameters of the optimizer, or its class.

    Examples: send optimizer weight_decay=0.01 betas=0.9,0.95, send optimizer SGD momentum=0.9
    """
    return compose.optimizer(words or [], group=group)


def seed(
    operation: Annotated[
        str,
        typer.Argument(
            metavar="OPERATION",
            help="germinate, start-training, start-grafting, stabilize, evaluate, fine-tune,"
            " fossilize, cull or cancel.",
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SEED] [PARAMETER=VALUE]...", show_default=False),
    ] = None,
    seed_id: Annotated[str | None, typer.Option(metavar="SEED", help="The seed's id.")] = None,
    slot: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where to germinate; else the first free.")
    ] = None,
    blueprint: Annotated[
        str | None, typer.Option(metavar="ID", help="What to germinate, as residual_conv.")
    ] = None,
) -> AdaptationCommand:
    """Grow, graft or cut a seed.

    Examples: send seed germinate --slot body --blueprint residual_conv --seed-id s1,
    send seed cull s1
    """
    return compose.seed(operation, words or [], seed_id=seed_id, slot=slot, blueprint=blueprint)


def prune(
    target: Annotated[str, typer.Argument(metavar="LAYER", help="Its path in the model, as body.")],
    fraction: Annotated[
        float,
        typer.Argument(metavar="FRACTION", help="Of its channels or heads: above 0, below 1."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PARAMETER=VALUE]...", show_default=False),
    ] = None,
) -> AdaptationCommand:
    """Remove a layer's least important channels, or heads, with all that they go into.

    Refused if the held-out loss would be higher by over impact (0.05, a share of it).

    Example: send prune body 0.25 impact=0.02
    """
    return compose.prune(target, fraction, words or [])


def emergency(
    level: Annotated[
        str, typer.Argument(metavar="LEVEL", help="notice, elevated, conservative or halt.")
    ],
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="SCOPE",
            help="Who obeys: run (the one that is sent to; default), pattern (see --runs), all.",
        ),
    ] = None,
    runs: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Ids of runs that obey, as exp-*.")
    ] = None,
) -> AdaptationCommand:
    """Raise an emergency: in a run, or by a broadcast in all that match. HALT holds until RESUME.

    Examples: send emergency halt --run exp-1 --reason smoke,
    send emergency halt --scope pattern --runs 'exp-*' --reason 'the cooling fails'
    """
    return compose.emergency(level, scope=scope, runs=runs)


def breaker(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the breaker, as tamiyo.")],
    state: Annotated[str, typer.Argument(metavar="STATE", help="open, half-open or closed.")],
) -> AdaptationCommand:
    """Set a circuit breaker."""
    return compose.breaker(name, state)


def profile(
    steps: Annotated[
        int, typer.Option(min=1, max=2**32 - 1, metavar="N", help="How many steps to record.")
    ] = 50,
) -> AdaptationCommand:
    """Record a trace of the next steps."""
    return compose.profile(steps)


def mode(
    word: Annotated[str, typer.Argument(metavar="MODE", help="conservative or normal.")],
) -> AdaptationCommand:
    """Enter or leave conservative mode, in which what is optional or risky is refused."""
    return compose.mode(word)


def cancel(
    withdrawn: Annotated[str, typer.Argument(metavar="COMMAND_ID", help="Of the command.")],
) -> AdaptationCommand:
    """Withdraw a command that waits for a later fence."""
    return compose.cancel(withdrawn)


_WORDS: Final[tuple[Callable[..., AdaptationCommand], ...]] = (
    pause,
    resume,
    stop,
    checkpoint,
    rollback,
    lr,
    optimizer,
    seed,
    prune,
    emergency,
    breaker,
    profile,
    mode,
    cancel,
)


def build() -> Any:
    """Build the group ``send``."""
    members = {
        words.__name__: functools.partial(_build_one, words.__name__, words) for words in _WORDS
    }
    before = with_parameters(
        _before, context_parameter(), *own_parameters(_json)[:1], *shared_parameters()
    )
    return build_group(before, members, invoke_without_command=True)


def _build_one(name: str, words: Callable[..., AdaptationCommand]) -> Any:
    return command(sends(words, _send_words), name)


def _json(
    json: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="'{…}'", help="An AdaptationCommand as protobuf JSON; -: from stdin."
        ),
    ] = None,
) -> AdaptationCommand:
    assert json is not None
    return compose.parse_json(sys.stdin.read() if json == "-" else json)


def _before(context: typer.Context, json: str | None, **given: Any) -> None:
    """Publish a command to a run and print what became of it.

    The options below may stand before or after the command's own words. Exit code: 0 applied, or
    deferred to a later fence; 2 not sent; 3 refused; 4 no answer in time.
    """
    said = Sending(**given)
    if context.invoked_subcommand is None:
        if json is None:
            context.fail("give a command, as in: send pause, or --json '{…}'")
        raise typer.Exit(_send(_json(json), said))
    if json is not None:
        context.fail(f"--json is a whole command; leave out {context.invoked_subcommand!r}")
    context.obj = said


def _send_words(composed: AdaptationCommand, given: Sending) -> int:
    from tolaria_bus.cli.broadcast import broadcast, is_broadcast
    from tolaria_bus.cli.locate import NotLocated
    from tolaria_bus.cli.without_server import can_be_left, leave
    from tolaria_bus.oona.connection import ServerUnreachable

    # A whole command, written as JSON, is for a run, which then tells the others.
    send = broadcast if is_broadcast(composed) else _send
    try:
        return send(composed, given)
    except (NotLocated, ServerUnreachable) as error:
        if not can_be_left(composed, given):
            raise
        return leave(composed, given, str(error))


def _send(composed: AdaptationCommand, given: Sending) -> int:
    # Here, so that --help and a wrong word don't wait for the imports.
    from tolaria_bus.cli.deliver import deliver

    return deliver(composed, given)
