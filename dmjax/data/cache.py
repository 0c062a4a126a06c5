"""Decoded images on disk: memory-mappable, keyed by content, safe against a writer that is killed."""

import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmjax.common import signals
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.data.dataset import Dataset, compute_moments, make_dataset, release

_MAPPED_BYTES = 1 << 26  # of decoded images, after which the memory that they take is given back


class Plan(NamedTuple):
    """What a source knows before it decodes.

    Attributes:
      class_names: C names.
      shape: (H, W, D) of every image.
      train: How many training images class c has at most, [C].
      test: How many test images there are at most.
      examples: Makes the iterator of (split, label, uint8 [H, W, D] or None where an image was skipped).
    """

    class_names: list[str]
    shape: tuple[int, int, int]
    train: list[int]
    test: int
    examples: Callable[[], Iterable[tuple[str, int, np.ndarray | None]]]


def cached_dataset(
    name: str | None, place: str, root: Path, key: str, plan: Callable[[], Plan], progress: bool
) -> tuple[Dataset, dict]:
    """Opens the data set stored under `key`, decoding it first where it is not there.

    The entry is written under a temporary name and renamed at the end, so that it is there whole or not at all. `name`
    and `place` are those of `make_dataset`.

    Returns:
      The data set, memory-mapped, and the entry's notes: {"skipped": number of images left out, ...}.
    """
    entry = root / key
    opened = _open(name, place, entry)
    if opened is not None:
        return opened
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root, key)
        temporary = root / f"{key}.tmp-{socket.gethostname()}-{os.getpid()}"
        temporary.mkdir()
    except OSError as error:
        raise _cannot_write(root, error) from None
    try:
        _write(temporary, plan(), progress)
        shutil.rmtree(entry, ignore_errors=True)  # damaged, or else it would have been opened
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():  # otherwise another process was faster, and wrote the same
                raise
    except OSError as error:
        raise _cannot_write(root, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    opened = _open(name, place, entry)
    if opened is None:
        raise UserError(f"the cache entry {entry} cannot be read back; choose another place with --data.cache")
    return opened


def _cannot_write(root: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the cache {root}: {error.strerror or error}; choose another with --data.cache")


def _remove_abandoned(root: Path, key: str) -> None:
    """Removes what writers of this machine left behind when they were killed."""
    prefix = f"{key}.tmp-{socket.gethostname()}-"
    for path in root.glob(f"{prefix}*"):
        try:
            os.kill(int(path.name.removeprefix(prefix)), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, ValueError):  # somebody else's process, which lives
            continue


def _write(out: Path, plan: Plan, progress: bool) -> None:
    num_classes = len(plan.class_names)
    images = _create(out / "images.npy", (num_classes, max([*plan.train, 1]), *plan.shape))
    test_images = _create(out / "test_images.npy", (plan.test, *plan.shape))
    counts = np.zeros(num_classes, np.int32)
    test_labels = []
    skipped = 0
    between = max(1, _MAPPED_BYTES // math.prod(plan.shape))
    examples = progress_bar(plan.examples(), "decoding", progress, sum(plan.train) + plan.test)
    for number, (split, label, image) in enumerate(examples):
        signals.check()
        if number % between == 0:
            release(images)
            release(test_images)
        if image is None:
            skipped += 1
        elif split == "train":
            images[label, counts[label]] = image
            counts[label] += 1
        else:
            test_images[len(test_labels)] = image
            test_labels.append(label)
    images.flush()
    test_images.flush()
    np.save(out / "counts.npy", counts)
    np.save(out / "test_labels.npy", np.asarray(test_labels, np.int32))
    mean, std = compute_moments(images, counts) if counts.sum() else (np.zeros(plan.shape[2]), np.ones(plan.shape[2]))
    meta = {"class_names": plan.class_names, "mean": mean.tolist(), "std": std.tolist(), "skipped": skipped}
    (out / "meta.json").write_text(json.dumps(meta))


def _create(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new memory-mapped array uint8, whose place on the disk is reserved: writing to a full disk would be a crash."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _open(name: str | None, place: str, entry: Path) -> tuple[Dataset, dict[str, Any]] | None:
    try:
        meta = json.loads((entry / "meta.json").read_text())
        images, test_images = (np.load(entry / f"{k}.npy", mmap_mode="r") for k in ("images", "test_images"))
        counts, test_labels = np.load(entry / "counts.npy"), np.load(entry / "test_labels.npy")
        moments = meta["mean"], meta["std"]
        test_images = test_images[: len(test_labels)]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    dataset = make_dataset(name, place, meta["class_names"], images, counts, test_images, test_labels, moments)
    return dataset, meta
