"""One line for what is wrong with a job, naming the file and line of the user's code."""

import sysconfig
import traceback
from pathlib import Path

import torch

_ENGINE = Path(__file__).resolve().parent
_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
_TORCH = Path(torch.__file__).resolve().parent
_MOST_TEXT = 600
"""Of an error's own text."""
_INSTALLED = ("site-packages", "dist-packages")


class JobError(ValueError):
    """A job that can't be used, or whose code failed: one line; the cause is the original error."""


def in_one_line(error: BaseException, most: int | None = None) -> str:
    """Return ``Type: text``, or the type alone; of the text so many characters at most."""
    text = " ".join(str(error).split())[:most]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def user_error(subject: str, part: str, error: BaseException) -> JobError:
    """Return the ``JobError`` for an exception that the user's code raised in ``part``.

    A ``JobError`` that the job raised itself is returned as it is: it already says what is meant.
    """
    if isinstance(error, JobError):
        return error
    text = " ".join(str(error).split()) or "no message"
    if len(text) > _MOST_TEXT:
        # Torch lists all its back ends where a kernel is missing.
        text = f"{text[:_MOST_TEXT]} ..."
    where = _place(error)
    at = f" at {where}" if where else ""
    return JobError(f"{subject}: {part} failed{at}: {type(error).__name__}: {text}")


def _place(error: BaseException) -> str:
    """``file:line`` of the innermost frame of the user's own code.

    A job may itself be an installed package: where no frame is outside of all installed packages,
    the innermost one that is neither torch's nor Python's nor the engine's is taken.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        (Path(frame.filename).resolve(), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
    ]
    outside = [(path, line) for path, line in frames if not _is_machinery(path)]
    own = [(path, line) for path, line in outside if not _is_installed(path)] or outside
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def _is_installed(path: Path) -> bool:
    return any(part in _INSTALLED for part in path.parts)


def _is_machinery(path: Path) -> bool:
    if path.parent == _ENGINE or path.is_relative_to(_TORCH):
        return True
    return path.is_relative_to(_STDLIB) and not _is_installed(path)
