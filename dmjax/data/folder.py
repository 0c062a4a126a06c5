"""A folder of image files, or a tar of one: train/CLASS/* and test/CLASS/* (or val/CLASS/*).

TinyImageNet's original layout (train/WNID/images/*, val/images/* with val/val_annotations.txt) is understood too.
A folder and a tar are both read as a sequence of (name, bytes), in order, since a compressed tar knows no other way:
once to fingerprint, once to look at names and headers, once to decode. What was decoded before is not decoded again.
"""

import hashlib
import lzma
import os
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from dmjax.common import files, signals
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import DataConfig
from dmjax.data import cache, images
from dmjax.data.dataset import Dataset

_FORMAT = "2"  # of the cache entry; part of its key
_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_ANNOTATIONS = "val_annotations.txt"
_MAX_FILE_BYTES = 1 << 28


class Member(NamedTuple):
    """A file or folder: `root` is its place among the configured paths, `name` its path below that one.

    `data` is empty for files that are neither images nor annotations, which are not read.
    """

    root: int
    name: str
    data: bytes
    is_folder: bool = False


class Place(NamedTuple):
    """Where an image belongs."""

    split: str  # train | test
    class_name: str


def load(config: DataConfig, progress: bool = True) -> Dataset:
    """Reads the configured folder or tar through the cache."""
    if config.path is None:
        raise UserError("data source folder needs --data.path FOLDER or --data.path FILE.tar")
    roots = [p for p in (config.path, config.test_path) if p is not None]
    for root in roots:
        if not root.exists():
            raise UserError(f"no such file or folder: {str(root)!r}")
        if not root.is_dir() and not (root.is_file() and {".tar", ".tgz", ".txz"} & set(root.suffixes)):
            raise UserError(
                f"{str(root)!r} is neither a folder nor a .tar, .tar.gz or .tar.xz file; arrays want --data.source npz"
            )
    key = "folder-" + _fingerprint(roots, config)
    place = config.path.name.split(".")[0]
    plan = lambda: _plan(roots, config, progress)  # noqa: E731
    dataset, notes = cache.cached_dataset(config.name, place, files.cache_folder(config.cache), key, plan, progress)
    if notes["skipped"]:
        print(f"{dataset.name}: left out {notes['skipped']} unreadable images", file=sys.stderr)
    return dataset


def _plan(roots: list[Path], config: DataConfig, progress: bool) -> cache.Plan:
    """Looks at every name and header, and checks that they make a data set."""
    members = progress_bar(_members(roots), "looking through files", progress)
    folders, headers, annotations = set(), {}, {}
    kinds: dict[Any, Any] = {}  # of headers, so that a million images share a few
    for member in members:
        signals.check()
        if member.is_folder:
            folders.add(member[:2])
        elif _is_annotations(member.name):
            annotations |= _read_annotations(member)
        elif _is_image(member.name) and "/." not in f"/{member.name}":
            if member[:2] in headers:
                raise UserError(f"{roots[member.root]} holds {member.name} twice; pack it again")
            header = _header(member, roots, config)
            headers[member[:2]] = kinds.setdefault(header, header)
    places = _places(headers, folders, annotations, roots)
    class_names = sorted({p.class_name for p in places.values() if p.split == "train"})
    if untrained := {p.class_name for p in places.values()}.difference(class_names):
        raise UserError(f"class {min(untrained)!r} has test images but no folder in train/ of {roots[0]}")
    kept = {k: headers[k] for k in places if headers[k] is not None}
    if not kept:
        raise UserError(f"none of the images under {roots[0]} can be read")
    shape = images.common_shape(kept, lambda key: f"under {roots[key[0]]}: {key[1]}", config.image_size)
    train = Counter(p.class_name for p in places.values() if p.split == "train")
    number = {name: c for c, name in enumerate(class_names)}

    def examples():
        for member in _members(roots):
            place = places.get(member[:2])
            if place is not None:
                image = _decode(member, shape, roots, config) if headers[member[:2]] is not None else None
                yield place.split, number[place.class_name], image

    return cache.Plan(class_names, shape, [train[c] for c in class_names], len(places) - sum(train.values()), examples)


def _members(roots: list[Path]) -> Iterator[Member]:
    """Yields all files and folders below the roots, in an order that does not depend on the file system."""
    for index, root in enumerate(roots):
        yield from _folder_members(index, root) if root.is_dir() else _tar_members(index, root)


def _folder_members(index: int, root: Path) -> Iterator[Member]:
    try:
        for name, entry in _entries_below(root, "", frozenset()):
            if entry.is_dir():
                yield Member(index, name, b"", True)
            elif not _is_read(name):
                yield Member(index, name, b"")
            elif not entry.is_file():
                raise UserError(f"{entry.path} is no regular file; remove it")
            else:
                _check_size(root, name, entry.stat().st_size)
                with open(entry.path, "rb", buffering=0) as file:
                    yield Member(index, name, file.read())
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None


def _entries_below(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, os.DirEntry]]:
    """All visible entries below a folder, a folder before what is in it, with their names from the top.

    Links to folders are followed, but not in circles. A million files are not a million paths at once: only the
    folders on the way down are held.
    """
    above = above | {folder.resolve()}
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in visible:
        if not entry.is_dir():
            yield prefix + entry.name, entry
        elif (inner := folder / entry.name).resolve() not in above:
            yield prefix + entry.name, entry
            yield from _entries_below(inner, f"{prefix}{entry.name}/", above)


def _tar_members(index: int, root: Path) -> Iterator[Member]:
    try:
        with tarfile.open(root, "r|*") as tar:
            for info in tar:
                tar.members = []  # which tarfile collects: a gigabyte for a million files
                path = PurePosixPath(info.name)
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(f"{root} holds the unsafe name {info.name!r}; pack it with relative names")
                if info.isdir():
                    yield Member(index, path.as_posix(), b"", True)
                elif info.isfile() and (file := tar.extractfile(info)) is not None:
                    wanted = _is_read(path.as_posix())
                    if wanted:
                        _check_size(root, info.name, info.size)
                    yield Member(index, path.as_posix(), file.read() if wanted else b"")
                elif (info.islnk() or info.issym()) and _is_read(path.as_posix()):
                    raise UserError(
                        f"{root} holds {info.name} as a link; pack it again with tar --dereference --hard-dereference"
                    )
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{root} is damaged or not a tar file: {reason}") from None


def _is_read(name: str) -> bool:
    """Whether the content of a file matters: images, and the annotations of TinyImageNet."""
    return _is_image(name) or _is_annotations(name)


def _is_annotations(name: str) -> bool:
    return name.rpartition("/")[2] == _ANNOTATIONS


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _EXTENSIONS


def _check_size(root: Path, name: str, size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise UserError(f"{root}: {name} holds {size >> 20} MiB, too much for an image")


def _fingerprint(roots: list[Path], config: DataConfig) -> str:
    """Digest of every byte that the decoded images depend on."""
    digest = hashlib.sha256(repr((_FORMAT, config.image_size, config.skip_unreadable)).encode())
    for index, root in enumerate(roots):
        if root.is_dir():
            for member in _folder_members(index, root):
                signals.check()
                digest.update(repr((index, member.name, member.is_folder, len(member.data))).encode())
                digest.update(member.data)
        else:
            try:
                with root.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise UserError(f"cannot read {root}: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _places(headers, folders, annotations, roots) -> dict[tuple[int, str], Place]:
    """Assigns every image to its split and class; raises where a split or a class is missing."""
    found: dict[str, dict[tuple[int, str], Place]] = {"train": {}, "val": {}, "test": {}}
    for key in headers:
        split, inner = _split_of(key[1])
        if split == "val" and annotations and inner[-1] in annotations:
            found["val"][key] = Place("test", annotations[inner[-1]])
        elif split is not None and len(inner) >= 2:
            found[split][key] = Place("train" if split == "train" else "test", inner[0])
    shown = ", ".join(str(r) for r in roots)
    if not found["train"]:
        raise UserError(f"no images in train/CLASS/ of {shown}; expected train/CLASS/*.png and test/CLASS/*.png")
    train_classes = {p.class_name for p in found["train"].values()}
    # TinyImageNet's test/ has no labels: a split whose folders are not classes does not count beside one whose are.
    fits = [s for s in ("test", "val") if {p.class_name for p in found[s].values()} & train_classes]
    if not fits:
        raise UserError(f"no images in test/CLASS/ or val/CLASS/ of {shown}; name their place with --data.test-path")
    used = ("train", fits[0])
    filled = {(split, place.class_name) for split in used for place in found[split].values()}
    for _, name in sorted(folders):
        split, inner = _split_of(name + "/")
        unlabelled = split == "val" and annotations
        if split in used and len(inner) == 2 and not unlabelled and (split, inner[0]) not in filled:
            raise UserError(f"class folder {name!r} of {shown} has no images; fill it or remove it")
    return found["train"] | found[fits[0]]


def _split_of(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Splits 'top/train/cat/1.png' into 'train' and ('cat', '1.png'); there may be one folder above the split."""
    parts = name.split("/")
    for depth in (0, 1):
        if len(parts) > depth + 1 and parts[depth] in ("train", "val", "test"):
            return parts[depth], tuple(parts[depth + 1 :])
    return None, ()


def _read_annotations(member: Member) -> dict[str, str]:
    lines = [line.split("\t") for line in member.data.decode(errors="replace").splitlines() if line.strip()]
    if any(len(fields) < 2 for fields in lines):
        raise UserError(f"{member.name}: every line must hold a file name, a tab and a class")
    return {fields[0]: fields[1] for fields in lines}


def _header(member: Member, roots: list[Path], config: DataConfig) -> images.Header | None:
    """What the file says of itself; None for an image that is to be skipped."""
    name = f"{member.name} of {roots[member.root]}"
    return images.attempt(images.read_header, member.data, name=name, skip=config.skip_unreadable)


def _decode(member: Member, shape: tuple[int, int, int], roots: list[Path], config: DataConfig) -> np.ndarray | None:
    """Returns uint8 [H, W, D], or None for an image that is to be skipped."""
    name = f"{member.name} of {roots[member.root]}"
    return images.attempt(images.decode, member.data, shape, name=name, skip=config.skip_unreadable)
