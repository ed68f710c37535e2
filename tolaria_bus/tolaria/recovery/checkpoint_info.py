"""What a checkpoint is called, what is told of it, and how it can fail."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_NAME = re.compile(r"step-(\d{8,})-t(\d+)-s(\d+)")


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are intact. One line says why."""


class CheckpointCorrupt(RuntimeError):
    """A checkpoint can't be used; it was set aside. One line says why.

    Attributes:
        name: Its name.
        reason: ``missing``, ``torn``, ``corrupt``, ``foreign``, ``too_new`` or ``unreadable``.
    """

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(f"checkpoint {name} is {reason}: {detail}")
        self.name = name
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as its manifest describes it.

    Attributes:
        name: Its name.
        step: Optimizer steps done.
        timeline: On which timeline.
        sequence: The last journal record that the state contains.
        epoch: ``meta["epoch"]``, 0 if that is missing.
        label: ``meta["label"]``, for people.
        bytes: Size of its tensors on disk.
        pinned: Retention keeps it.
        cut: A rollback undid it.
        manifest_sha256: In hex; over everything that is in it, by way of the checksums.
    """

    name: str
    step: int
    timeline: int
    sequence: int
    epoch: int
    label: str
    bytes: int
    pinned: bool
    cut: bool
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint that was found good, with its state (no tensors if they weren't asked for)."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    manifest_sha256: str


def checkpoint_name(step: int, timeline: int, sequence: int) -> str:
    """``step-00001200-t1-s345``."""
    return f"step-{step:08d}-t{timeline}-s{sequence}"


def is_checkpoint_name(name: str) -> bool:
    """Could :func:`checkpoint_name` have made this?"""
    return _NAME.fullmatch(name) is not None


def parse_name(name: str) -> tuple[int, int, int]:
    """Step, timeline and sequence of a checkpoint's name.

    Raises:
        ValueError: It isn't one.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} isn't a checkpoint's name: step-00001200-t1-s345 is one")
    return int(match[1]), int(match[2]), int(match[3])
