"""A peer: another implementation in a process of its own, which runs when it is asked to and says how long it took."""

import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dmjax.common.errors import UserError

_TORCH = Path(__file__).parents[2] / "experiments" / "benchmark" / "torch_peer.py"


class Peer:
    """A running peer, which has said what it is.

    Attributes:
      about: What it says of itself: versions and device.
    """

    def __init__(self, process: subprocess.Popen, errors: TextIO):
        self._process, self._errors = process, errors
        try:
            self.about: dict[str, Any] = dict(json.loads(self._answer()))
        except (ValueError, TypeError):
            raise UserError("the peer should say what it is, as one line of JSON, before it is asked to run") from None

    def run(self, iterations: int) -> float:
        """Seconds that the peer takes for so many iterations."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; the answer, or its absence, says why
            print(iterations, file=self._process.stdin, flush=True)
        answer = self._answer()
        try:
            seconds = float(answer)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            raise UserError(f"the peer should answer with seconds, and says {answer.strip()!r}")
        return seconds

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or ["it ended without a word"]
            hint = "; pip install -r tests/requirements-torch.txt" if "No module named 'torch'" in lines[-1] else ""
            raise UserError(f"the peer stopped: {lines[-1]}{hint}")
        return line


def find(peer: str) -> Path:
    """The program of a peer; raises a `UserError` where there is none."""
    path = _TORCH if peer == "torch" else Path(peer)
    if not path.is_file():
        where = " (it is part of a clone of the repository, not of the installed package)" if peer == "torch" else ""
        raise UserError(f"no peer {str(path)!r}{where}; leave --peer out, or name a Python file")
    return path


@contextlib.contextmanager
def started(path: Path, case: dict[str, Any]) -> Iterator[Peer]:
    """Starts a peer on a case, and ends it; raises a `UserError` where it does not start."""
    command = [sys.executable, str(path), json.dumps(case)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        try:
            yield Peer(process, errors)
        finally:
            process.kill()
