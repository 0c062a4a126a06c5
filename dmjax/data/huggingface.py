"""Sets of the Hugging Face library `datasets`: a folder of `save_to_disk`, or one of the hub in the local cache.

Nothing is downloaded here: a set of the hub has been loaded once with `datasets.load_dataset`, and is found where that
keeps it. Images are read as the bytes that they are stored as, in batches, in order: once to fingerprint, once to look
at their headers, once to decode. What was decoded before is not decoded again.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmjax.common import files, signals
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import DataConfig
from dmjax.data import cache, images
from dmjax.data.dataset import Dataset

_FORMAT = "1"  # of the cache entry; part of its key
_TEST_SPLITS = ("test", "validation", "valid", "val")
_UNLABELLED = (None, -1)  # what stands for a label that is not published
_BATCH = 256  # images that are in memory at once


class Split(NamedTuple):
    """The images of one split.

    Attributes:
      where: What the split is called in messages.
      stored: A `datasets.Dataset`.
      column: The name of the one column of it that holds images.
      labels: int32 [n].
    """

    where: str
    stored: Any
    column: str
    labels: np.ndarray


def load(config: DataConfig, progress: bool = True) -> Dataset:
    """Reads splits train and test (or validation, where test has no labels) through the cache."""
    try:
        import datasets
    except ImportError as error:
        mend = "pip install datasets"
        raise UserError(f"data source huggingface needs the library datasets: {mend} ({error})") from None
    datasets.utils.logging.set_verbosity_error()  # it warns whenever it reads its own cache
    where = str(config.name if config.path is None else config.path)
    class_names, splits = _labelled(_opened(config), where, config)
    key = "huggingface-" + _fingerprint(class_names, splits, config)
    plan = lambda: _plan(class_names, splits, where, config, progress)  # noqa: E731
    place = Path(where).name.split(":")[0]
    root = files.cache_folder(config.cache)
    dataset, notes = cache.cached_dataset(config.known_as, place, root, key, plan, progress)
    if notes["skipped"]:
        print(f"{dataset.name}: left out {notes['skipped']} unreadable images", file=sys.stderr)
    return dataset


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` writes."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _opened(config: DataConfig) -> dict[str, Any]:
    """The splits of the configured set by name; with --data.test-path, those to test on are from there alone."""
    if config.path is None:
        return _from_cache(config.name)
    splits = _saved(config.path, "train")
    if config.test_path is not None:
        splits = {name: split for name, split in splits.items() if name not in _TEST_SPLITS}
        splits |= {k: v for k, v in _saved(config.test_path, "test").items() if k in _TEST_SPLITS}
    return splits


def _saved(path: Path, split: str) -> dict[str, Any]:
    """The splits in a folder; `split` is the name of a single one, which has none in the folder."""
    import datasets

    if not path.is_dir():
        raise UserError(f"there is no folder {str(path)!r}; name one that save_to_disk of datasets has written")
    if not is_saved(path):
        raise UserError(f"{path} is no folder that save_to_disk of datasets has written")
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, fsspec, json and datasets raise a dozen kinds
        raise _damaged(path, error) from None
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {split: saved}


def _from_cache(given: str | None) -> dict[str, Any]:
    """The splits of a set of the hub, which has been downloaded before."""
    from datasets.packaged_modules.cache.cache import Cache

    if given is None:
        raise UserError("data source huggingface needs --data.path FOLDER, or --data.name OWNER/NAME of the hub")
    name, _, part = given.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"{given!r} is no name of the Hugging Face hub; it is like uoft-cs/cifar10")
    short = name.split("/")[-1]
    try:
        builder = Cache(repo_id=name, dataset_name=short, config_name=part or None, hash="auto", version="auto")
        splits = builder.as_dataset()
        assert isinstance(splits, dict)
        return dict(splits)
    except Exception as error:  # as many kinds as for a folder
        reason = _first_line(error)
    if "multiple" in reason:
        raise UserError(f"{reason}; choose one, such as --data.name {name}:{reason.split()[-1]}")
    arguments = ", ".join(repr(argument) for argument in (name, part) if argument)
    command = f'python -c "import datasets; datasets.load_dataset({arguments})"'
    raise UserError(f"{given} is not in the local cache of datasets ({reason}); it must be downloaded first: {command}")


def _labelled(opened: Mapping[str, Any], where: str, config: DataConfig) -> tuple[list[str], dict[str, Split]]:
    """The names of the classes, and splits train and test with labels that count them."""
    import datasets

    if "train" not in opened:
        raise UserError(f"{where} has no split train; it has {', '.join(opened)}")
    features = opened["train"].features
    image, label = _image_column(features, where, config), _label_column(features, where, config)
    values = {"train": _values(opened["train"], label, where)}
    for split in (s for s in _TEST_SPLITS if s in opened and {image, label} <= set(opened[s].features)):
        values[split] = _values(opened[split], label, where)
        if not set(values[split]) <= set(_UNLABELLED):
            break
    else:
        raise UserError(
            f"{where} has no split test or validation with labels, it has {', '.join(opened)}; save one, "
            "dataset.train_test_split(test_size=0.2).save_to_disk(FOLDER), or name its folder with --data.test-path"
        )
    class_names = _class_names(features[label], values["train"])
    if getattr(opened[split].features[label], "names", None) != getattr(features[label], "names", None):
        raise UserError(f"{where}: the classes of the splits train and {split} have different names")
    splits = {}
    for role, name in (("train", "train"), ("test", split)):
        described = f"split {name} of {where}"
        stored = opened[name].select_columns([image]).cast_column(image, datasets.Image(decode=False))
        splits[role] = Split(described, stored, image, _numbered(values[name], class_names, described))
    return class_names, splits


def _image_column(features: Mapping[str, Any], where: str, config: DataConfig) -> str:
    import datasets

    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    mend = f"its columns are {', '.join(features)}; cast one, dataset.cast_column(NAME, datasets.Image())"
    return _chosen(found, config.image_column, "image", where, mend)


def _label_column(features: Mapping[str, Any], where: str, config: DataConfig) -> str:
    """The column of the classes: those with named classes come before plain whole numbers and texts."""
    import datasets

    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    values = {name: str(f.dtype) for name, f in features.items() if isinstance(f, datasets.Value)}
    plain = [name for name, dtype in values.items() if re.match("u?int|(large_)?string", dtype)]
    found = named + plain if config.label_column is not None else named or plain
    return _chosen(found, config.label_column, "label", where, f"its columns are {', '.join(features)}")


def _chosen(found: Sequence[str], given: str | None, kind: str, where: str, mend: str) -> str:
    """The column that is given, or the only one of its kind, or of several the one that is called by its kind."""
    flag = f"--data.{kind}-column"
    if given is not None and given not in found:
        raise UserError(f"{where} has no column {given!r} of {kind}s; {flag} can be {' or '.join(found) or 'nothing'}")
    if not found:
        raise UserError(f"{where} has no column of {kind}s; {mend}")
    if given is None and len(found) > 1 and kind not in found:
        raise UserError(f"{where} has several columns of {kind}s, {', '.join(found)}; choose one with {flag}")
    return given or (kind if kind in found else found[0])


def _values(stored: Any, column: str, where: str) -> list[Any]:
    return [value for batch in _batches(stored.select_columns([column]), where) for value in batch[column]]


def _class_names(feature: Any, values: Sequence[Any]) -> list[str]:
    """Those that the column itself names; otherwise its texts in alphabetical order, or numbers from 0."""
    if getattr(feature, "names", None):
        return list(feature.names)
    present = set(values) - set(_UNLABELLED)
    if all(isinstance(value, str) for value in present):
        return sorted(present)
    # A number far beyond that of images is a mistake, and would make that many classes.
    return [str(number) for number in range(min(max(present) + 1, max(len(values), 2)))]


def _numbered(values: Sequence[Any], class_names: Sequence[str], where: str) -> np.ndarray:
    """int32 [n], the class of each image; raises a `UserError` that names the first image without one."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.zeros(len(values), np.int32)
    for i, value in enumerate(values):
        if value in _UNLABELLED:
            raise UserError(f"image {i} of the {where} has no label; leave such images out with dataset.filter")
        number = numbers.get(value, -1) if isinstance(value, str) else value
        if not 0 <= number < len(class_names):
            raise UserError(f"image {i} of the {where} has the label {value!r}, which is no class to train on")
        labels[i] = number
    return labels


def _plan(
    class_names: list[str], splits: Mapping[str, Split], where: str, config: DataConfig, progress: bool
) -> cache.Plan:
    """Looks at the header of every image."""
    headers: dict[tuple[str, int], images.Header | None] = {}
    kinds: dict[Any, Any] = {}  # of headers, so that a million images share a few
    total = sum(len(split.labels) for split in splits.values())

    def name(key: tuple[str, int]) -> str:
        return f"image {key[1]} of the {splits[key[0]].where}"

    for key, data in progress_bar(_contents(splits), "looking through images", progress, total):
        header = images.attempt(images.read_header, data, name=name(key), skip=config.skip_unreadable)
        headers[key] = kinds.setdefault(header, header)
    kept = {key: header for key, header in headers.items() if header is not None}
    if not kept:
        raise UserError(f"none of the images of {where} can be read")
    shape = images.common_shape(kept, lambda key: f"in {where}: {name(key)}", config.image_size)

    def examples():
        for (split, i), data in _contents(splits):
            image = None
            if headers[split, i] is not None:
                image = images.attempt(images.decode, data, shape, name=name((split, i)), skip=config.skip_unreadable)
            yield split, int(splits[split].labels[i]), image

    counts = Counter(splits["train"].labels.tolist())
    train = [counts[c] for c in range(len(class_names))]
    return cache.Plan(class_names, shape, train, len(splits["test"].labels), examples)


def _contents(splits: Mapping[str, Split]) -> Iterator[tuple[tuple[str, int], bytes]]:
    """The split and number of every image, and the file that it is stored as, which is empty where it is missing."""
    for name, split in splits.items():
        i = 0
        for batch in _batches(split.stored, split.where):
            signals.check()
            for cell in batch[split.column]:
                yield (name, i), _file(cell or {}, f"image {i} of the {split.where}")
                i += 1


def _file(cell: Mapping[str, Any], name: str) -> bytes:
    if cell.get("bytes") is not None or cell.get("path") is None:
        return cell.get("bytes") or b""
    path = Path(cell["path"])
    files.check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}, which is {name}: {error.strerror}") from None


def _batches(stored: Any, where: str) -> Iterator[dict[str, list[Any]]]:
    try:
        yield from stored.with_format(None).iter(_BATCH)
    except (OSError, ValueError, TypeError, KeyError) as error:  # those of pyarrow are among them
        raise _damaged(where, error) from None


def _fingerprint(class_names: list[str], splits: Mapping[str, Split], config: DataConfig) -> str:
    """Digest of every byte that the decoded images depend on."""
    about = (_FORMAT, config.image_size, config.skip_unreadable, class_names)
    digest = hashlib.sha256(repr(about).encode())
    for split in splits.values():
        digest.update(repr(len(split.labels)).encode() + split.labels.tobytes())
    for _, data in _contents(splits):
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _damaged(where: Any, error: Exception) -> UserError:
    return UserError(f"{where} is damaged: {_first_line(error)}; save it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
