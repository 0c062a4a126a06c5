"""Chunks that fit: the search for them, and the analysis that it trusts."""

import dataclasses
import json
from types import SimpleNamespace

import jax
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


def test_on_a_tpu_activations_stay_on_the_chip(monkeypatch):
    monkeypatch.setattr(backend, "current", lambda: "tpu")
    small = memory.size_of(dataclasses.replace(CONFIG, ipc=10), (10, 5000, 32, 32, 3), 10)
    assert memory.preferred(CONFIG, small, False) == Chunks(1, None, None, None)
    assert memory.preferred(CONFIG, SIZE, False) == Chunks(1, 64, None, 1)
    fixed = dataclasses.replace(CONFIG, class_chunk=4, image_chunk=8)
    assert memory.preferred(fixed, SIZE, False) == Chunks(4, 8, 8, 4, recompute=True)


def test_a_cpu_takes_a_few_images_at_a_time_and_computes_activations_again_before_it_takes_fewer(monkeypatch):
    monkeypatch.setattr(backend, "current", lambda: "cpu")
    cifar = memory.size_of(CONFIG, (10, 5000, 32, 32, 3), 10)
    assert memory.preferred(CONFIG, cifar, False) == Chunks(1, 16, 16, 1)
    tried = []

    def compile(chunks):
        tried.append(chunks)
        return needs(chunks._replace(synthetic=chunks.synthetic if chunks.recompute else 50))

    assert memory.choose(CONFIG, cifar, compile, 120e6, False)[1] == Chunks(1, 16, 16, 1, recompute=True)
    assert tried == [Chunks(1, 16, 16, 1), Chunks(1, 16, 16, 1, recompute=True)]
    assert memory.choose(CONFIG, cifar, compile, 110e6, False)[1] == Chunks(1, 8, 8, 1, recompute=True)
    assert str(tried[-1]) == "classes 1, real 8, synthetic 8, synthetic_classes 1, activations computed again"


def test_fewer_synthetic_images_are_tried_before_more_real_ones(monkeypatch):
    """From a TPU's chunks, real images of one class and synthetic ones of ten, only the latter can become fewer."""
    monkeypatch.setattr(backend, "current", lambda: "tpu")
    tried = []

    def compile(chunks):
        tried.append(chunks)
        analysis = needs(chunks._replace(classes=chunks.synthetic_classes), 10).memory_analysis()
        return SimpleNamespace(memory_analysis=lambda: analysis)

    small = memory.size_of(dataclasses.replace(CONFIG, ipc=10), (10, 5000, 32, 32, 3), 10)
    memory.choose(CONFIG, small, compile, 600e6, False)
    assert len(tried) > 1
    assert {chunks.classes for chunks in tried} == {1}


def test_a_compiler_that_finds_it_too_large_is_one_that_needs_more(monkeypatch):
    monkeypatch.setattr(backend, "current", lambda: "gpu")

    def compile(chunks):
        if (chunks.classes or 200) > 10:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: temporaries (29.44G) exceed available HBM (15.75G)")
        return needs(chunks)

    assert memory.choose(CONFIG, SIZE, compile, 16e9, False)[1].classes <= 10

    def broken(chunks):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        memory.choose(CONFIG, SIZE, broken, 16e9, False)


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
