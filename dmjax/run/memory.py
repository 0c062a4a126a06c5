"""How much to compute at once: chunks of classes and of images whose program fits in the memory of a device."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax.common import backend
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.methods.base import Chunks
from dmjax.run import devices

# Of so many, 16 images of 32x32, activations stay in the cache; measured, see experiments/benchmark/NOTES.md.
_CPU_PIXELS = 2**14
# Of so many, 256 images of 32x32, the largest activation stays in the memory of a TPU core, by its compiler's estimate.
_ON_CHIP_PIXELS = 2**18
SLACK = 0.9  # of the memory: allocators lose some to fragments
_COPIES = 4  # of the state of a further run: it comes, is stacked with the others, goes on and is given back


class Size(NamedTuple):
    """What the choice of chunks depends on besides the configuration.

    Attributes:
      pixels: Of an image, H * W.
      classes: Classes of a device.
      real: Real images per class and iteration.
      synthetic: Synthetic images per class.
    """

    pixels: int
    classes: int
    real: int
    synthetic: int


def size_of(config: Config, real_shape: Sequence[int], classes: int) -> Size:
    """The size of a run with real images [C, N, H, W, D] and so many classes on a device."""
    _, most, height, width, channels = real_shape
    real = min(getattr(config.method, "batch_real", most), most)
    return Size(height * width, classes, real, config.method.synthetic_images(config, (height, width, channels)))


def choose(
    config: Config, size: Size, compile: Callable[[Chunks], Any], limit: float, whole: bool
) -> tuple[Any, Chunks]:
    """Compiles with the preferred chunks, or with the largest ones that fit where those do not.

    First activations are computed again instead of kept, then fewer classes are taken at once, then fewer images of one
    class, by halves or faster; what is configured stays.

    Args:
      config: For `class_chunk`, `image_chunk` and `memory_gb`.
      size: How large the run is.
      compile: Makes the program of some chunks.
      limit: Bytes that a device has for it.
      whole: All classes and images must be computed at once, as with batch norm.

    Returns:
      The compiled program and its chunks.

    Raises:
      UserError: nothing fits.
    """
    chunks = preferred(config, size, whole)
    program, need = compiled(compile, chunks)
    while program is None or need > limit:
        smaller = None if whole else _smaller(config, chunks, size, need / limit)
        if smaller is None:
            fixed = "auto" not in (config.class_chunk, config.image_chunk) and config.memory_gb is None
            if program is not None and fixed:
                break  # all is as the user wants it, and the analysis is no proof
            raise UserError(
                f"{_shown(need)} per device are needed even with {chunks.classes or size.classes} class(es) and "
                f"{chunks.real or size.real} image(s) at once, and {_shown(limit)} are there; "
                "take more devices, fewer real or synthetic images, or smaller images"
            )
        chunks = smaller
        program, need = compiled(compile, chunks)
    return program, chunks


def compiled(compile: Callable[[Chunks], Any], chunks: Chunks) -> tuple[Any, float]:
    """The program of some chunks and what it needs; None where the compiler itself finds that it does not fit."""
    try:
        program = compile(chunks)
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"RESOURCE_EXHAUSTED.*?([\d.]+)G", str(error), re.DOTALL)
        if found is None:
            raise
        return None, float(found.group(1)) * 2**30
    return program, peak_bytes(program)


def check_images(config: Config, dataset: Dataset) -> None:
    """Raises a `UserError` where the synthetic images alone would not fit in the memory of this machine."""
    need = 4.0 * dataset.num_classes * config.ipc * math.prod(dataset.image_shape)
    if need > _host_bytes():
        raise UserError(
            f"ipc {config.ipc} asks for {_shown(need)} of synthetic images, and there are {_shown(_host_bytes())}"
        )


def preferred(config: Config, size: Size, whole: bool) -> Chunks:
    """The chunks where memory is no question: activations stay in the cache of a CPU, or on the chip of a TPU.

    A GPU computes all classes at once: one after another reads and writes as much there, with ten times the kernels.
    """
    if whole:
        return Chunks()
    kind = backend.current()
    real = synthetic = None if config.image_chunk == "auto" else config.image_chunk
    if kind == "cpu" and real is None:
        real = synthetic = max(1, _CPU_PIXELS // size.pixels)
    if config.class_chunk != "auto":
        classes = synthetic_classes = config.class_chunk
    elif kind == "cpu":
        classes = synthetic_classes = 1
    elif kind == "tpu":
        return _on_chip(config, size)
    else:
        classes = synthetic_classes = size.classes
    # Who says how many images has memory in mind: then only those have their activations there.
    recompute = config.image_chunk != "auto"
    return Chunks(_all_of(classes, size), real, synthetic, _all_of(synthetic_classes, size), recompute)


def _on_chip(config: Config, size: Size) -> Chunks:
    """Real images of one class, and synthetic ones of several, whose activations stay on the chip of an accelerator."""
    given = None if config.image_chunk == "auto" else config.image_chunk
    at_once = max(1, _ON_CHIP_PIXELS // size.pixels)
    real = at_once if given is None and at_once < size.real else given
    classes, synthetic_classes = (max(1, at_once // images) for images in (size.real, size.synthetic))
    return Chunks(_all_of(classes, size), real, given, _all_of(synthetic_classes, size), given is not None)


def _all_of(classes: int, size: Size) -> int | None:
    return None if classes >= size.classes > 1 else classes


def _smaller(config: Config, chunks: Chunks, size: Size, excess: float) -> Chunks | None:
    """The next chunks to try when the program needs `excess` times what there is; None when there are none."""
    if not chunks.recompute and (chunks.synthetic or size.synthetic) < size.synthetic:
        return chunks._replace(recompute=True)
    classes = max(chunks.classes or size.classes, chunks.synthetic_classes or size.classes)
    if config.class_chunk == "auto" and classes > 1:
        fewer = max(1, min(classes // 2, int(classes / excess)))
        return chunks._replace(classes=min(chunks.classes or size.classes, fewer), synthetic_classes=fewer)
    real, synthetic = chunks.real or size.real, chunks.synthetic or size.synthetic
    if config.image_chunk == "auto" and max(real, synthetic) > 1:
        images = max(real, synthetic)
        fewer = max(1, min(images // 2, int(images / excess)))
        return Chunks(classes, min(real, fewer), min(synthetic, fewer), classes, recompute=True)
    return None


def runs_beside(one: int, state: Any, num_devices: int, limit: float) -> int:
    """How many runs fit in memory where one alone needs `one` bytes: the others add their states only.

    Args:
      one: Bytes that the program of one run needs on a device.
      state: Of one run, on the host.
      num_devices: Over which it is split.
      limit: Bytes that a device has.
    """
    each = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)) / num_devices
    return 1 + max(0, int((limit - one) / (_COPIES * each)))


def peak_bytes(program: Any) -> int:
    """What a compiled program needs on one device, by its own analysis: arguments, results and temporaries."""
    analysis = program.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(held + analysis.temp_size_in_bytes)


def limit(config: Config, num_classes: int) -> float:
    """The bytes of a device that a run may use: as configured, or a little less than there are.

    What is configured for a CPU is for all of its cores.
    """
    taken = devices.chosen(config, num_classes)
    here = [device for device in taken if device.process_index == jax.process_index()] or jax.local_devices()
    if config.memory_gb:
        return config.memory_gb * 1e9 / (len(here) if backend.cores_are_devices() else 1)
    return SLACK * _device_bytes(here)


def _device_bytes(here: Sequence[Any]) -> float:
    """The memory of one device: what its allocator may use, or this device's part of the host's memory."""
    if limit := (here[0].memory_stats() or {}).get("bytes_limit"):
        return float(limit)
    return _host_bytes() / len(here)


def _host_bytes() -> float:
    """The memory of this machine, or of the container that it is."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # where there is no such limit
        host = min(host, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return float(host)


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
