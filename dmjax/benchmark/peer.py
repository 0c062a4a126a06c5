"""A peer: another implementation in a process of its own, which runs when it is asked to and says how long it took."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmjax.errors import UserError

_TORCH = Path(__file__).parents[2] / "experiments" / "benchmark" / "torch_peer.py"


class Peer:
    """A running peer.

    Attributes:
      about: What it says of itself: versions and device.
    """

    def __init__(self, process: subprocess.Popen, about: dict[str, Any]):
        self._process = process
        self.about = about

    def run(self, iterations: int) -> float:
        """Seconds that the peer takes for so many iterations."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; the answer, or its absence, says why
            print(iterations, file=self._process.stdin, flush=True)
        return float(_answer(self._process))


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
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            about = json.loads(_answer(process))
            yield Peer(process, about)
        finally:
            process.kill()


def _answer(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        lines = process.stderr.read().strip().splitlines() or ["it ended without a word"]
        hint = "; pip install -r tests/requirements-torch.txt" if "No module named 'torch'" in lines[-1] else ""
        raise UserError(f"the peer stopped: {lines[-1]}{hint}")
    return line
