"""A *job* is the user's part of a run: model, data, loss, in ordinary PyTorch terms.

``load_job`` finds it by name (``digits``), by ``module:attribute`` or by
``path/to/file.py:attribute`` and returns a ``Job``: the same thing with every default filled in and
every attribute checked. What goes wrong inside the user's code comes out as a ``JobError`` of one
line that names the file and line; the original exception is its cause.

What is found may be a class (made with the options), a function that returns the job (called with
the options), or a plain object (takes no options). It must have::

    model() -> nn.Module
    train_data() -> map-style Dataset or DataLoader
    validation_data() -> the same
    loss(model, batch) -> scalar tensor, the mean over the batch

and may have ``accuracy(model, batch)``, ``optimizer(params)``, ``schedule``, ``batch_size``,
``epochs`` and ``name``, and for seeds ``seed_slots`` (paths of modules behind which seeds can be
grown) or ``kasmina(model)`` (an owner of seeds of its own). Seeds that are to be told apart in the
gradient need the losses of single samples: a ``loss`` with a parameter ``reduction`` that takes
``"none"``, or ``sample_losses(model, batch)``; shape (samples, ...), and the mean over all of it
is the loss. Instead of a function ``optimizer`` may
be the name of a class of ``torch.optim``, or a mapping with ``name``, ``lr`` and other
hyperparameters.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tolaria_bus.tolaria.engine.job_errors import JobError, user_error
from tolaria_bus.tolaria.engine.job_options import convert_options
from tolaria_bus.tolaria.engine.learning_rate import LearningRateRefused, Schedule
from tolaria_bus.tolaria.engine.numbers import is_whole
from tolaria_bus.tolaria.engine.optimizer_classes import factory_of
from tolaria_bus.tolaria.engine.seeding import Domain, mix, seeded

__all__ = ["Job", "JobData", "JobError", "build_data", "build_model", "load_job", "view"]

DEFAULT_BATCH_SIZE = 64
DEFAULT_EPOCHS = 10
DEFAULT_ATTRIBUTE = "job"
_REQUIRED = ("model", "train_data", "validation_data", "loss")
_READY_JOBS = "tolaria_bus.jobs"


@dataclass(frozen=True)
class Job:
    """A user's job with its defaults filled in. ``source`` is the user's own object.

    ``loss``, ``sample_losses``, ``accuracy`` and ``optimizer`` are the user's functions as they
    are, so that a step pays nothing for this class. ``schedule`` has been checked but is not bound
    to a run's length.
    """

    spec: str
    name: str
    source: object
    model: Callable[[], nn.Module]
    train_data: Callable[[], Any]
    validation_data: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    sample_losses: Callable[[nn.Module, Any], Tensor] | None = None
    accuracy: Callable[[nn.Module, Any], Tensor | float] | None = None
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: int = DEFAULT_BATCH_SIZE
    epochs: int = DEFAULT_EPOCHS
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobData:
    """What a job gave as its data: map-style datasets, or DataLoaders over them."""

    train: Any
    validation: Any


def load_job(spec: str, options: Mapping[str, str] | None = None) -> Job:
    """Find the job that ``spec`` names and check it.

    ``options`` go, by name, to the parameters of the class or function found, converted to their
    annotated types. The current folder (for ``module:attribute``) or the file's folder (for a path)
    is put on ``sys.path``, as Python does for a script, so that a job can import its neighbours.

    Raises:
        JobError: nothing is found there, it can't be imported, an option is unknown or has the
            wrong type, or an attribute is missing or of the wrong type. One line.
    """
    options = dict(options or {})
    source = _make(spec, _find(spec), options)
    return view(source, spec=spec, options=options)


def view(source: object, *, spec: str = "", options: Mapping[str, str] | None = None) -> Job:
    """Return a ``Job`` over an object that has a job's attributes.

    Raises:
        JobError: an attribute is missing or of the wrong type.
    """
    spec = spec or type(source).__name__
    missing = [name for name in _REQUIRED if not callable(getattr(source, name, None))]
    if missing:
        raise JobError(f"job {spec!r} lacks {', '.join(f'{name}()' for name in missing)}")
    optimizer = getattr(source, "optimizer", None)
    if isinstance(optimizer, (str, Mapping)):
        optimizer = factory_of(optimizer)
    sample_losses = _sample_losses(source)
    for name, value in (
        ("accuracy", getattr(source, "accuracy", None)),
        ("optimizer", optimizer),
        ("sample_losses", sample_losses),
    ):
        if value is not None and not callable(value):
            raise JobError(f"job {spec!r}: {name} is {value!r}; it must be a function, or left out")
    try:
        schedule = Schedule.parse(getattr(source, "schedule", None))
    except LearningRateRefused as error:
        raise JobError(f"job {spec!r}: {error}") from error
    job_name = getattr(source, "name", None) or _short_name(spec)
    if not isinstance(job_name, str):
        raise JobError(f"job {spec!r}: name is {job_name!r}; it must be a string")
    found: Any = source
    return Job(
        spec=spec,
        name=job_name,
        source=source,
        model=found.model,
        train_data=found.train_data,
        validation_data=found.validation_data,
        loss=found.loss,
        sample_losses=sample_losses,
        accuracy=getattr(source, "accuracy", None),
        optimizer=optimizer,
        schedule=schedule,
        batch_size=_count(source, "batch_size", DEFAULT_BATCH_SIZE, spec),
        epochs=_count(source, "epochs", DEFAULT_EPOCHS, spec),
        options=dict(options or {}),
    )


def build_model(job: Job, seed: int) -> nn.Module:
    """Make the job's model so that the same seed gives the same weights, bit for bit.

    The global generators (Python's, numpy's, torch's) are as before when this returns.

    Raises:
        JobError: ``model()`` raised, or returned something else than an ``nn.Module``.
    """
    with seeded(mix(seed, Domain.MODEL)):
        model: object = _call(job, "model", job.model)
    if not isinstance(model, nn.Module):
        raise JobError(
            f"job {job.name!r}: model() returned a {type(model).__name__}; it must be an nn.Module"
        )
    return model


def build_data(job: Job, seed: int) -> JobData:
    """Make the job's training and validation data, which may draw random numbers as a model may.

    Raises:
        JobError: ``train_data()`` or ``validation_data()`` raised.
    """
    with seeded(mix(seed, Domain.DATA, 0)):
        train = _call(job, "train_data", job.train_data)
    with seeded(mix(seed, Domain.DATA, 1)):
        validation = _call(job, "validation_data", job.validation_data)
    return JobData(train, validation)


def _call(job: Job, what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        raise user_error(f"job {job.name!r}", f"{what}()", error) from error


def _sample_losses(source: Any) -> Any:
    """The job's losses of single samples: a function of its own, or ``loss`` unreduced."""
    own = getattr(source, "sample_losses", None)
    if own is not None:
        return own
    try:
        parameters = inspect.signature(source.loss).parameters
    except (TypeError, ValueError):  # A callable that doesn't tell.
        return None
    return partial(source.loss, reduction="none") if "reduction" in parameters else None


def _short_name(spec: str) -> str:
    """``path/to/train.py:job`` → ``train``; ``pkg.mod:Thing`` → ``mod``; ``digits`` → itself."""
    location = spec.rpartition(":")[0] or spec
    return Path(location).stem if location.endswith(".py") else location.rpartition(".")[2]


def _count(source: object, name: str, default: int, spec: str) -> int:
    value = getattr(source, name, default)
    if not is_whole(value, 1):
        raise JobError(f"job {spec!r}: {name} is {value!r}; it must be a whole number above 0")
    return value


def _find(spec: str) -> object:
    ready: Mapping[str, str] = importlib.import_module(_READY_JOBS).READY_JOBS
    location, colon, attribute = ready.get(spec, spec).rpartition(":")
    if not colon or attribute.endswith(".py"):
        location, attribute = spec, DEFAULT_ATTRIBUTE
        if not spec.endswith(".py") and "." not in spec:
            raise JobError(
                f"unknown job {spec!r}; ready ones are {', '.join(sorted(ready))}, "
                "or name your own as module:attribute or path/to/file.py:attribute"
            )
    module = _from_file(location) if location.endswith(".py") else _from_module(location)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise JobError(f"{location} has no attribute {attribute!r}") from None


def _from_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise JobError(f"there is no module {name!r} to take a job from") from error
        raise user_error(f"job module {name!r}", "import", error) from error
    except Exception as error:
        raise user_error(f"job module {name!r}", "import", error) from error


def _from_file(location: str) -> ModuleType:
    path = Path(location).expanduser().resolve()
    if not path.is_file():
        raise JobError(f"there is no job file {location}")
    # One module per file: a second load of the same file must give the same classes.
    name = f"tolaria_job_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise JobError(f"{location} can't be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise user_error(f"job file {location}", "import", error) from error
    return module


def _make(spec: str, found: object, options: dict[str, str]) -> object:
    is_class = isinstance(found, type)
    if not is_class and (callable(getattr(found, "loss", None)) or not callable(found)):
        if options:
            raise JobError(
                f"job {spec!r} is a ready-made object and takes no options, but got "
                f"{', '.join(sorted(options))}"
            )
        return found
    arguments = convert_options(spec, typing.cast("Callable[..., object]", found), options)
    try:
        return typing.cast("Callable[..., object]", found)(**arguments)
    except JobError:
        raise
    except Exception as error:
        raise user_error(f"job {spec!r}", "making it", error) from error
