"""Metrics of a run: metrics.jsonl and TensorBoard, cut back to the checkpoint when a run resumes."""

import json
from pathlib import Path
from typing import Any

from dmjax import files


class Metrics:
    """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Attributes:
      evaluated: Iterations after which an accuracy was recorded.
    """

    def __init__(self, workdir: Path, iteration: int):
        """Drops what was written after `iteration`, by a run that was killed before its next checkpoint."""
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["iteration"] <= iteration]
        self.evaluated = {e["iteration"] for e in map(json.loads, kept) if "accuracy_mean" in e}
        files.write_bytes(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=iteration + 1)

    def write(self, iteration: int, **values: Any) -> None:
        """Appends one line, and the same numbers to TensorBoard."""
        self._file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)

    def picture(self, iteration: int, image: Any) -> None:
        """Shows a picture uint8 [H, W] or [H, W, 3] in TensorBoard."""
        self._board.add_image("synthetic", image, iteration, dataformats="HW" if image.ndim == 2 else "HWC")

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()


def _lines(path: Path) -> list[str]:
    """The whole lines of a file whose last one may have been cut off."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").split("\n")[:-1]
    return [line for line in lines if line.startswith("{") and line.endswith("}")]
