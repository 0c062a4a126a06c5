"""SIGINT and SIGTERM: stop at the next safe point, and leave with 128 + the signal's number."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Stop:
    """Whether a signal has come. While `deferred`, it waits to be asked about; otherwise it raises at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferred = False

    def __call__(self, signum, frame) -> None:
        waits = self._deferred and self.signum is None  # a second signal does not wait
        self.signum = signum
        if not waits:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a first signal is only noted in `signum`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


@contextlib.contextmanager
def handled() -> Iterator[Stop]:
    """Handles both signals inside the block; outside the main thread nothing can be handled, and nothing is."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
