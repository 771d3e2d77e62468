"""The signals that ask a training to stop, from the command line's first moment to its last."""

import logging
import os
import signal
import threading
from types import TracebackType
from typing import Any

from ldm.console import INTERRUPTED, is_first_process
from ldm.training.options import REQUEUE

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequested(BaseException):  # no Exception: libraries that pass over those must not swallow it
    """A signal came while there was nothing to save."""


class StopSignals:
    """Within this context SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (as SLURM sends before the time is up) ask to stop.

    `asked` is the signal that came, None where none did. While `deferred` is set, whoever set it looks at `asked` from
    time to time; else the signal raises at once. A second signal always does.

    Raises:
        StopRequested: the first signal.
        KeyboardInterrupt: a second one.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False
        self.raised = False  # StopRequested was
        self._former: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._former = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def exit_status(self) -> int:
        """Of a process that stopped because it was asked to."""
        if not is_first_process():
            return 0  # Lightning takes another status of a further process for a crash, and kills the first one
        return INTERRUPTED if self.asked == signal.SIGINT else REQUEUE

    def ignore(self) -> None:
        """From here on no signal does anything: what is left must not be spoilt."""
        for number in self._former:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a loader's worker, whom the training ends
            return
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        if not self.deferred:
            self.raised = True
            raise StopRequested
        log.info("stopping after this step (once more to stop at once, without saving)")
