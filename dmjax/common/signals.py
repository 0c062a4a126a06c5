"""SIGINT and SIGTERM: stop at the next safe point, and leave with 128 + the signal's number.

The handler only takes a note. An exception out of a handler may surface anywhere, in a callback of the compiler for
one, where it is lost or does harm; so whatever takes long asks with `check` when it is safe to stop.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_received: list[int] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, as for a `UserError`."""
        return [f"{self}; the same call goes on from the last checkpoint, if there is a workdir"]


def received() -> int:
    """The number of the signal that has come since the outermost `handled` began; 0 for none."""
    return _received[0] if _received else 0


def check() -> None:
    """Raises `Interrupted` if a signal has come since the outermost `handled` began."""
    if _received:
        raise Interrupted(_received[0])


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles both signals inside the block; outside the main thread nothing can be handled, and nothing is."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _note:
        yield
        return
    _received.clear()
    previous = {s: signal.signal(s, _note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _received.clear()
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _note(signum: int, frame: Any) -> None:
    if _received:  # the second one does not wait; the last checkpoint is whole all the same
        raise Interrupted(signum)
    _received.append(signum)
