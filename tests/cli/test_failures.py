"""What is the user's to mend is one line."""

from __future__ import annotations

import errno

import pytest

from tolaria_bus.cli.failures import one_line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_names_the_file(number: int) -> None:
    line = one_line(OSError(number, "whatever", "/runs/r/spool/spare"))
    assert line is not None
    assert line.startswith("no room on the disk: /runs/r/spool/spare: ")
    assert one_line(ExceptionGroup("tasks", [OSError(number, "whatever")])) is not None


def test_any_other_error_of_the_system_is_a_fault_of_ours() -> None:
    assert one_line(OSError(errno.EBADF, "whatever")) is None
