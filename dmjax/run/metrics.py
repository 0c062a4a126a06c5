"""Metrics of a run: metrics.jsonl and TensorBoard, cut back to the checkpoint when a run resumes."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from dmjax.common import files
from dmjax.common.errors import UserError


class Metrics:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Attributes:
      evaluated: Iterations after which an accuracy was recorded.
    """

    def __init__(self, workdir: Path, iteration: int):
        """Drops what was written after `iteration`, by a run that was killed before its next checkpoint."""
        path = workdir / "metrics.jsonl"
        entries = [entry for entry in read(path) if entry["iteration"] <= iteration]
        self.evaluated = {entry["iteration"] for entry in entries if "accuracy_mean" in entry}
        files.write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        self._file = path.open("a")
        self._board = _summary_writer()(str(workdir / "tensorboard"), purge_step=iteration + 1)

    def write(self, iteration: int, **values: Any) -> None:
        """Appends one line, and the same numbers to TensorBoard."""
        try:
            self._file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error.strerror}; the same command goes on") from None
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)

    def picture(self, iteration: int, image: Any) -> None:
        """Shows a picture uint8 [H, W] or [H, W, 3] in TensorBoard."""
        self._board.add_image("synthetic", image, iteration, dataformats="HW" if image.ndim == 2 else "HWC")

    def close(self) -> None:
        """Flushes both, as far as there is room."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()


def _summary_writer() -> Any:
    """The writer of tensorboardX, which imports PyTorch wherever that is installed: seconds, for nothing used here."""
    with_torch = "torch" in sys.modules
    if not with_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not with_torch:
            sys.modules.pop("torch", None)
    return SummaryWriter


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a file whose last line may have been cut off; what is not an entry is dropped."""
    entries = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
            entries.append(entry)
    return entries
