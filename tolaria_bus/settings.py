"""Every setting, one place, typed, checked at start.

A setting comes from, the later winning: its default here, a ``.env`` file in the working
directory, an environment variable ``TOLARIA_<NAME>``, ``--set name=value``, an option of its own
(``--redis``). Names that start with ``job.`` are the job's and are handed to it as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

DECIDES_WEIGHTS: Final = (
    "seed",
    "epochs",
    "steps",
    "device",
    "threads",
    "deterministic",
    "compile",
    "amp",
    "tf32",
    "accumulate",
    "clip_norm",
    "channels_last",
    "aggregation",
    "new_parameter_warmup_steps",
    "loss_spike_factor",
    "loss_spike_floor",
    "emergency_clean_steps",
)
"""Settings that the same weights need the same values of; each start journals them."""


class SettingError(ValueError):
    """A setting is wrong; the message is one line naming it, the value and what is allowed."""


class Settings(BaseSettings):
    """The settings of one process. Immutable once made; see :func:`load`."""

    model_config = SettingsConfigDict(
        env_prefix="TOLARIA_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        str_strip_whitespace=True,
    )

    # The bus
    redis_url: str | None = Field(
        None, description="Server, sentinels or cluster to use; none: an embedded one starts."
    )
    wait_replicas: int = Field(
        0, ge=0, le=16, description="Replicas that must have what may not be lost (WAIT)."
    )
    wait_on_disk: bool = Field(
        False, description="They must have it on disk, and so must the server (WAITAOF)."
    )
    prefix: str = Field("oona", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Of every key.")
    signing_keys: SecretStr | None = Field(
        None, description="id:base64secret[,id:base64secret...]; the first signs, all verify."
    )
    allow_unsigned: bool = Field(
        False, description="Take unsigned commands from a server that isn't on this machine."
    )
    compat_envelopes: bool = Field(
        False, description="Also take signed envelopes that have only fields 1-3."
    )
    outbox_capacity: int = Field(
        65_536, ge=64, le=4_194_304, description="Packets waiting to be sent, LOW and NORMAL."
    )
    telemetry_stream_length: int = Field(
        100_000, ge=100, le=100_000_000, description="Entries kept in a telemetry stream."
    )
    stream_length_limit: int = Field(
        100_000,
        ge=1000,
        le=100_000_000,
        description="Entries of any other stream, at most; half of it where groups have read on.",
    )
    stream_age_days: float = Field(
        7.0, gt=0.0, le=3650.0, description="Older entries go, where groups have read on."
    )
    dead_letter_age_days: float = Field(
        30.0, gt=0.0, le=3650.0, description="Older dead letters go."
    )
    group_lease_days: float = Field(
        7.0, ge=0.1, le=3650.0, description="A group that reads nothing for so long is removed."
    )
    lease_seconds: float = Field(
        30.0, ge=1.0, le=3600.0, description="How long a silent worker keeps its run."
    )

    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Serve /metrics and /healthz there; 0: any free port."
    )
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="Address to serve them at; they need no password."
    )

    # The run
    run: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="The run's id: 1-64 of A-Z a-z 0-9 . _ -",
    )
    run_dir: Path | None = Field(None, description="The run's folder; default RUNS_DIR/RUN.")
    runs_dir: Path = Field(Path("runs"), description="Where folders of runs are made.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of data order, weights and dropout.")
    epochs: int | None = Field(None, ge=1, le=1_000_000, description="Default: the job's.")
    steps: int | None = Field(None, ge=1, le=2**53, description="Optimizer steps in all.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="torch's; default: torch's own.")
    deterministic: bool = Field(True, description="Only deterministic algorithms (CUDA).")
    allow_inexact: bool = Field(
        False, description="Resume under another torch, device or thread count."
    )

    # The engine
    compile: str = Field(
        "off",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$",
        description="torch.compile: off, on, or a backend; eager again where it fails.",
    )
    amp: Literal["off", "auto", "bf16", "fp16"] = Field(
        "off", description="Autocast: off, auto, bf16, fp16 (with a GradScaler)."
    )
    prefetch: bool = Field(
        True, description="Draw and copy the next batch while a step computes (CUDA)."
    )
    tf32: bool = Field(True, description="Multiply float32 in TF32, where the device can (CUDA).")
    accumulate: int = Field(
        1, ge=1, le=1_000_000, description="Batches whose gradients make one optimizer step."
    )
    clip_norm: float | None = Field(
        None, gt=0.0, le=1e12, description="Gradients of a larger 2-norm are scaled down to it."
    )
    channels_last: bool = Field(False, description="Convolutions in channels-last format.")
    activation_checkpointing: str = Field(
        "", description="Modules (a glob of their names) that keep no activations."
    )
    aggregation: str = Field(
        "none",
        pattern=r"^[a-z][a-z0-9_]{0,31}(:[a-z0-9_=.,+-]{1,200})?$",
        description="Handler of conflicts between host and seeds: none, pcgrad, or one of TorchJD.",
    )
    new_parameter_warmup_steps: int | None = Field(
        None,
        ge=0,
        le=2**53,
        description="New parameters' rate grows from 10 % over so many steps; default: 10 epochs.",
    )

    # Recovery
    checkpoint_every_epochs: int = Field(1, ge=1, le=1_000_000)
    checkpoint_every_steps: int | None = Field(None, ge=1, le=2**53)
    checkpoint_keep: int = Field(5, ge=1, le=10_000, description="Checkpoints kept on disk.")
    checkpoint_max_gb: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="The oldest go beyond so many GB in all; never the newest.",
    )
    checkpoint_writer: Literal["auto", "process", "thread"] = Field(
        "auto", description="Who writes: a process of low priority (auto: on the CPU) or a thread."
    )
    loss_spike_factor: float = Field(
        15.0, gt=1.0, le=1e6, description="A loss over so many times its running mean is bad."
    )
    loss_spike_floor: float = Field(
        0.25, ge=0.0, le=1e6, description="And over so many times the mean of the run's first."
    )
    snapshot_every_steps: int | None = Field(
        100, ge=1, le=2**53, description="Steps between two states kept in memory to go back to."
    )
    snapshot_at_epochs: bool = Field(True, description="Also one at the end of each epoch.")
    snapshot_keep: int = Field(3, ge=1, le=1000, description="States kept in memory.")
    snapshot_memory_mb: int = Field(
        4096, ge=0, le=2**40, description="Memory for them, and for one more that is made ready."
    )
    accuracy_collapse_factor: float = Field(
        0.5, ge=0.0, lt=1.0, description="An accuracy under so many times its best is bad; 0: none."
    )
    rollback_lr_factor: float = Field(
        0.5, gt=0.0, le=1.0, description="Learning rates after an automatic rollback."
    )
    rollback_data: Literal["skip", "replay"] = Field(
        "skip", description="The data since, after an automatic one; replay needs a lowered rate."
    )
    rollback_clean_steps: int = Field(
        100, ge=1, le=2**53, description="Sound steps past a failure after which it is overcome."
    )
    rollback_limit: int = Field(
        3, ge=1, le=100, description="Automatic rollbacks in a row before the run is halted."
    )
    emergency_clean_steps: int = Field(
        500, ge=1, le=2**53, description="Steps without a cause that lower an emergency by a level."
    )

    # Safety
    boundary_ms: float = Field(
        18.0,
        gt=0.0,
        le=600_000.0,
        description="What an epoch's end may cost, in ms, validation and checkpoint apart.",
    )
    tamiyo: Literal["off", "overlapped", "blocking"] = Field(
        "overlapped",
        description="Whose answers are taken: nobody's; or Tamiyo's, while training goes on, or"
        " waited for.",
    )
    tamiyo_seconds: float = Field(
        2.0, ge=0.01, le=60.0, description="How long a blocking run waits for Tamiyo's answer."
    )

    # Being watched
    hang_seconds: float = Field(
        20.0, ge=0.5, le=86_400.0, description="A worker that gets no further for so long hangs."
    )
    start_seconds: float = Field(
        600.0,
        ge=1.0,
        le=86_400.0,
        description="Likewise to its first step, or for a checkpoint.",
    )
    restart_limit: int = Field(
        5, ge=0, le=1_000_000, description="Restarts in a row that get a run no further."
    )
    restart_seconds: float = Field(
        1.0, ge=0.0, le=60.0, description="Before the first; each next one waits twice as long."
    )
    memory_alert: float = Field(
        0.9, gt=0.0, lt=1.0, description="Share of memory used, a GPU's too, that raises an alert."
    )
    disk_alert: float = Field(
        0.9, gt=0.0, lt=1.0, description="Share of the run folder's disk used that raises one."
    )

    # What is published, and when
    telemetry_seconds: float = Field(1.0, ge=0.0, le=3600.0, description="Between step metrics.")
    profile_steps: int | None = Field(
        None, ge=1, le=10_000, description="Record a trace of so many steps at the start."
    )
    profile_keep: int = Field(5, ge=1, le=1000, description="Traces kept in the run's folder.")
    profile_max_mb: int = Field(
        50, ge=1, le=100_000, description="A trace has fewer steps rather than more MB."
    )
    drain_seconds: float = Field(
        20.0, ge=0.1, le=3600.0, description="A stop finishes the step, saves, flushes within this."
    )


def load(assignments: Iterable[str] = (), **options: Any) -> tuple[Settings, dict[str, str]]:
    """Settings from the environment, ``.env``, ``name=value`` assignments and options.

    Options that are ``None`` count as not given.

    Returns:
        The settings, and the job's own options (``job.width=32`` as ``{"width": "32"}``).

    Raises:
        SettingError: One line naming the setting, the value and what is allowed.
    """
    values, job_options = _split(assignments)
    values.update({name: value for name, value in options.items() if value is not None})
    try:
        return Settings(**values), job_options
    except ValidationError as error:
        raise SettingError(_one_line(error)) from None


def _split(assignments: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    job_options: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise SettingError(f"setting {assignment!r}: expected name=value")
        if name.startswith("job."):
            job_options[name.removeprefix("job.")] = value
        elif name in Settings.model_fields:
            values[name] = value
        else:
            known = ", ".join(sorted(Settings.model_fields))
            raise SettingError(f"setting {name!r} is unknown; known are {known}, and job.<option>")
    return values, job_options


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    shown = "" if name == "signing_keys" else f" = {first['input']!r}"
    field = Settings.model_fields.get(name)
    about = f" ({field.description})" if field is not None and field.description else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"setting {name}{shown}: {message[0].lower()}{message[1:]}{about}"


def deciding(settings: Settings) -> dict[str, str]:
    """The values of :data:`DECIDES_WEIGHTS` as text; a setting without one is left out."""
    values = {name: getattr(settings, name) for name in DECIDES_WEIGHTS}
    return {name: str(value) for name, value in values.items() if value is not None}


def describe() -> Mapping[str, tuple[Any, str]]:
    """Name → (default, description) of every setting, for ``--help`` and the docs."""
    return {
        name: (field.default, field.description or "")
        for name, field in Settings.model_fields.items()
    }
