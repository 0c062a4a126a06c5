"""Checkpoints: kept, restored, and never believed when a bit is wrong."""

import gc
import shutil

import numpy as np
import pytest

from dmjax.methods.images import ImageState
from dmjax.run.checkpoint import Checkpoints
from dmjax.run.program import RunState


def state_of(iteration):
    rng = np.random.default_rng(iteration)
    images = rng.normal(size=(3, 2, 8, 8, 1)).astype(np.float32)
    return RunState(np.int32(iteration), ImageState(images, (np.full(3, iteration),)))


def test_the_last_k_are_kept_and_the_newest_is_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for i in range(4):
        checkpoints.save(state_of(i), {"condense": 0.5 * i})
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]
    state, notes = checkpoints.restore(state_of(0))
    np.testing.assert_array_equal(state.method.images, state_of(3).method.images)
    np.testing.assert_array_equal(state.method.optimizer[0], [3, 3, 3])
    assert notes == {"condense": 1.5}
    checkpoints.close()


def test_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.restore(state_of(0)) is None
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its event loop
def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path):
    checkpoints = Checkpoints(tmp_path / "whole", keep=2)
    for i in (1, 2):
        checkpoints.save(state_of(i), {"condense": 1.0})
    checkpoints.close()
    files = [p.relative_to(tmp_path / "whole") for p in sorted((tmp_path / "whole" / "2").rglob("*")) if p.is_file()]
    fell_back = 0
    for file in files:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "c")
        content = bytearray((tmp_path / "c" / file).read_bytes())
        if not content:
            continue
        content[len(content) // 2] ^= 4
        (tmp_path / "c" / file).write_bytes(content)
        damaged = Checkpoints(tmp_path / "c", keep=2)
        state, _ = damaged.restore(state_of(0))
        damaged.close()
        expected = state_of(int(state.iteration))  # either one, but whole
        np.testing.assert_array_equal(state.method.images, expected.method.images)
        np.testing.assert_array_equal(state.method.optimizer[0], expected.method.optimizer[0])
        fell_back += int(state.iteration) == 1
    assert fell_back >= 2
    gc.collect()  # what is dropped is dropped here, not during the next test
