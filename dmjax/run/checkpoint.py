"""Checkpoints: a thin wrapper over Orbax that keeps the last k and survives a damaged newest one.

Only the first process writes and reads them: the state is whole there.
"""

import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.run.program import RunState

_COPIES, _MARGIN = 2, 2e6  # of a state, and bytes for what else a run writes between two checkpoints


class Checkpoints:
    """The checkpoints of one run, by iteration; a finished one is renamed into place, so a kill leaves the old ones."""

    def __init__(self, folder: Path, keep: int):
        import orbax.checkpoint as ocp

        for name in ("absl", "asyncio"):  # Orbax reports every restore, and every failure several times
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._folder = folder
        only_here = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            multiprocessing_options=only_here,
            create=False,  # Orbax would make the folder in all processes
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: RunState, notes: dict[str, Any]) -> None:
        """Writes a host state, unless its iteration is there already, and removes the oldest beyond `keep`."""
        iteration = int(state.iteration)
        if iteration in self._manager.all_steps():
            return
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
        files.check_room(self._folder, _COPIES * size + _MARGIN)
        content = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state._asdict()),
            notes=self._ocp.args.JsonSave({"notes": notes, "sha256": _digest(state, notes)}),
        )
        try:
            self._manager.save(iteration, args=content, force=True)
        except (OSError, ValueError) as error:  # a full disk: TensorStore raises both
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(
                f"cannot write a checkpoint to {self._folder}: {reason}; the same command goes on"
            ) from None

    def restore(self, template: RunState) -> tuple[RunState, dict[str, Any]] | None:
        """Returns the newest state that can be read and its notes; None where there is none.

        A damaged checkpoint is reported and moved aside, and the one before is taken.
        """
        template = jax.tree.map(np.asarray, template)  # Orbax wants arrays, 0-d ones too
        for iteration in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    iteration,
                    args=self._ocp.args.Composite(
                        state=self._ocp.args.StandardRestore(template._asdict()), notes=self._ocp.args.JsonRestore()
                    ),
                )
                state = RunState(**restored["state"])
                notes = restored["notes"]["notes"]
                if int(state.iteration) != iteration or restored["notes"]["sha256"] != _digest(state, notes):
                    raise ValueError("its content is not what was written")
                return state, notes
            except Exception as error:  # whatever Orbax and TensorStore raise for broken files
                reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
                aside = self._folder.with_name("damaged_checkpoints") / str(iteration)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                shutil.move(self._folder / str(iteration), aside)
                self._manager.reload()
                print(
                    f"checkpoint {iteration} is damaged ({reason}) and was moved to {aside}; "
                    "falling back to the one before, or to the start",
                    file=sys.stderr,
                )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def _digest(state: RunState, notes: dict[str, Any]) -> str:
    """What tells a state from one in which a bit was flipped: storage checks its own index, not every byte."""
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
