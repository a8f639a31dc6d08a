"""What an error came from: libraries seldom pass the system's own error on."""

from __future__ import annotations

import errno
from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from or amid, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised from in the first place: those who pass one on may say again what it says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def disk_full(error: BaseException) -> bool:
    """Whether the system refused to write because a disk is full, or its user's share of it."""
    return any(
        isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in causes(error)
    )
