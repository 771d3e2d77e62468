"""Trying again to read what lies on a network, or on a disk that falters."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from basicsr.utils.errors import FieldError, UserError, first_line
from basicsr.utils.files import OutputError

log = logging.getLogger(__name__)
Value = TypeVar("Value")
# What passes by itself: of disks, of networks' file systems, of connections. A file that is not there, may not be read
# or is no picture stays so.
PASSING = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EAGAIN", "EBUSY", "EINTR", "ETIMEDOUT", "ENOLCK", "EREMOTEIO", "ENOTCONN", "ECONNRESET"),
        *("ECONNABORTED", "ECONNREFUSED", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
}
RETRIES = 2  # of command lines
PAUSE = 1.0  # seconds before the first retry; each further one waits twice as long as the one before


def check_retries(retries: int) -> None:
    """Raise FieldError for a number that cannot be."""
    if retries < 0:
        raise FieldError("retries", f"is {retries}: give 0 or more")


def passes(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is of those that pass by themselves."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in PASSING:
            return True
        error = error.__cause__
    return False


def with_retries(read: Callable[[], Value], retries: int) -> Value:
    """What `read` returns; where it fails by an error that passes, it is tried `retries` times again.

    Raises:
        Exception: whatever it raised last. An OutputError is raised at once, for writing is no matter of patience.
    """
    for attempt in range(retries):
        try:
            return read()
        except (UserError, OSError) as error:
            if isinstance(error, OutputError) or not passes(error):
                raise
            log.warning("%s: tried again (%d of %d)", first_line(error), attempt + 1, retries)
            time.sleep(PAUSE * 2**attempt)
    return read()
