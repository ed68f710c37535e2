"""Options of a job (``--option width=32``): text, made into arguments of the job's constructor."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from tolaria_bus.tolaria.engine.job_errors import JobError


def convert_options(
    spec: str, make: Callable[..., object], options: dict[str, str]
) -> dict[str, object]:
    """Return the keyword arguments for ``make``, a job's class or factory.

    A parameter's annotation decides the type, or its default's type where there is none; a
    parameter of another type than bool, int, float and str gets the text.

    Raises:
        JobError: an option that ``make`` doesn't take, one that it needs and doesn't get, or text
            that isn't of the parameter's type.
    """
    parameters = inspect.signature(make).parameters
    by_name = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    allowed = ", ".join(by_name) or "none"
    for name in options:
        if name not in by_name:
            raise JobError(f"job {spec!r} has no option {name!r}; it takes: {allowed}")
    for name, parameter in by_name.items():
        if parameter.default is parameter.empty and name not in options:
            raise JobError(f"job {spec!r} needs the option {name!r}; it takes: {allowed}")
    hints = _hints(make)
    return {
        name: _convert(spec, name, text, hints.get(name), by_name[name].default)
        for name, text in options.items()
    }


def _hints(make: Callable[..., object]) -> dict[str, Any]:
    target = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):
        # Annotations that can't be resolved here: the defaults' types decide.
        return {}


def _convert(spec: str, name: str, text: str, hint: Any, default: object) -> object:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind in (bool, int, float, str)]
    kind = kinds[0] if kinds else type(default)
    if kind is bool:
        truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() in truth:
            return truth[text.lower()]
        raise JobError(f"job {spec!r}: option {name} is {text!r}; it must be true or false")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise JobError(f"job {spec!r}: option {name} is {text!r}; it must be {word}") from None
    return text
