"""Progress: a bar in a terminal and in a notebook, and a line now and then in the log of a cluster job."""

import re
import sys
import time
import warnings
from collections.abc import Iterable
from typing import Any

_SECONDS_BETWEEN_LINES = 30.0


def progress_bar(
    items: Iterable[Any] | None, description: str, enabled: bool, total: int | None = None, **kwargs: Any
) -> Any:
    """A tqdm bar over `items` (or to be updated by hand); where nobody looks, lines after the first half minute."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # without ipywidgets the bar is of text
        from tqdm.auto import tqdm

    options: dict[str, Any] = {}
    if not (sys.stderr.isatty() or "ipykernel.zmqshell" in sys.modules):
        text = "{desc}: {n_fmt}/{total_fmt} after {elapsed}, {remaining} left, {rate_fmt}{postfix}"
        options = {"file": _Lines(), "bar_format": text, "position": 0, "mininterval": _SECONDS_BETWEEN_LINES}
    return tqdm(items, desc=description, total=total, disable=not enabled, **options, **kwargs)


class _Lines:
    """Standard error, once in half a minute; what would overwrite a line begins a new one."""

    def __init__(self):
        self._last = time.monotonic()

    def write(self, text: str) -> None:
        now = time.monotonic()
        text = re.sub(r"(\.\d)\d+/", r"\1/", text.replace("\r", "").rstrip())  # a network and a half is enough
        if text and now - self._last >= _SECONDS_BETWEEN_LINES:
            sys.stderr.write(f"{text}\n")
            self._last = now

    def flush(self) -> None:
        sys.stderr.flush()
