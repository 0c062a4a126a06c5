"""Chunks that fit: the search for them, and the analysis that it trusts."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from dmjax import DM
from dmjax.common import backend
from dmjax.common.errors import UserError
from dmjax.config import Config, DataConfig
from dmjax.data import load
from dmjax.methods.base import Chunks
from dmjax.run import memory

CONFIG = Config(method=DM(batch_real=256), ipc=50)
SIZE = memory.size_of(CONFIG, (200, 500, 64, 64, 3), 200)


def needs(chunks, per_device=200):
    """A program that needs 1 MB for every image that is embedded at once, and 100 MB in any case."""
    images = (chunks.classes or per_device) * max(chunks.real or 256, chunks.synthetic or 50)
    analysis = SimpleNamespace(
        argument_size_in_bytes=100e6, output_size_in_bytes=0, alias_size_in_bytes=0, temp_size_in_bytes=images * 1e6
    )
    return SimpleNamespace(memory_analysis=lambda: analysis)


@pytest.mark.parametrize("gigabytes", [0.11, 0.2, 1, 16, 100])
def test_what_is_chosen_fits(gigabytes, monkeypatch):
    monkeypatch.setattr(backend, "current", lambda: "gpu")
    program, chunks = memory.choose(CONFIG, SIZE, needs, gigabytes * 1e9, False)
    assert memory.peak_bytes(program) <= gigabytes * 1e9
    if gigabytes == 100:
        assert chunks == Chunks(None, None, None)
    if gigabytes == 16:
        assert chunks.classes > 1
        assert chunks.real is None


def test_what_is_fixed_stays_and_what_cannot_fit_is_said(monkeypatch):
    monkeypatch.setattr(backend, "current", lambda: "gpu")
    fixed = dataclasses.replace(CONFIG, class_chunk=7)
    assert memory.choose(fixed, SIZE, needs, 1e9, False)[1].classes == 7
    with pytest.raises(UserError, match="are needed even with 1 class"):
        memory.choose(CONFIG, SIZE, needs, 50e6, False)
    with pytest.raises(UserError, match="are needed even"):
        memory.choose(CONFIG, SIZE, needs, 1e9, True)


def test_more_images_than_memory_holds_are_refused_before_they_are_made():
    dataset = load(DataConfig())
    with pytest.raises(UserError, match=r"ipc 2000000000 asks for [0-9.]+ GB"):
        memory.check_images(dataclasses.replace(CONFIG, ipc=2 * 10**9), dataset)


def test_200_classes_of_64x64_fit_in_16_gb(run_command, tmp_path):
    """B = 256 and 50 images per class, by the compiled program's own analysis."""
    done = run_command(
        *("dmjax.benchmark", "--case", "tiny_imagenet-ipc50", "--plan", "--memory-gb", "16"),
        *("--json", tmp_path / "plan.json"),
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())["plans"][0]
    assert plan["peak_bytes"] <= 16e9
    assert plan["real_image_bytes"] == 200 * 500 * 64 * 64 * 3
