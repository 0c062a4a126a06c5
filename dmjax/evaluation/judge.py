"""Judging a set: networks trained from scratch on it and tested on real images (Zhao & Bilen, section 3.1)."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from dmjax import networks
from dmjax.common import compilation, files
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import AugmentConfig, EvaluationConfig, NetworkConfig
from dmjax.data import Dataset, synthetic_set
from dmjax.data.factor import pack
from dmjax.data.sampling import random_images
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import training
from dmjax.evaluation.training import Examples, Recipe


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Test accuracies in [0, 1].

    Attributes:
      mean: The mean over networks.
      std: The population standard deviation over networks.
      values: The accuracy of each network.
      training_seconds: Seconds to train and test all networks, over all starts, without compilation.
    """

    mean: float
    std: float
    values: tuple[float, ...]
    training_seconds: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float], seconds: float = 0.0) -> "Accuracy":
        """Summarises the accuracies of single networks."""
        values = tuple(values)
        return cls(float(np.mean(values)), float(np.std(values)), values, seconds)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} +- {100 * self.std:.1f} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "values": list(self.values)}


class Settings(Protocol):
    """What judging needs to know: a resolved `Config` or `EvaluateConfig` has all of it."""

    @property
    def network(self) -> NetworkConfig: ...
    @property
    def augment(self) -> AugmentConfig: ...
    @property
    def evaluation(self) -> EvaluationConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def progress(self) -> bool: ...


def judge(
    settings: Settings,
    dataset: Dataset,
    synthetic: SyntheticSet,
    description: str = "evaluating",
    resume_file: Path | None = None,
) -> Accuracy:
    """Trains `settings.evaluation.networks` networks on a set and tests them on the data set's test images.

    Args:
      settings: The network, the recipe and the seed.
      dataset: The real data.
      synthetic: The set.
      description: The text of the progress bar.
      resume_file: A file to which the accuracy of every network is written as soon as it is known. Networks whose
        accuracy under the same settings is in it already are not trained again.
    """
    check_fits(synthetic, dataset)
    moments = synthetic.mean, synthetic.std
    sets = [place(synthetic)] * settings.evaluation.networks
    content = synthetic.digest() if resume_file else ""
    return _judge(settings, dataset, moments, sets, _epochs(settings), description, content, resume_file)


def judge_random_real(
    settings: Settings, dataset: Dataset, ipc: int, resume_file: Path | None = None, factor: int = 1
) -> Accuracy:
    """Does the same for random real images, drawn anew for every network.

    There are `ipc` stored images per class. With a factor each of them holds factor^2 real images, reduced to its
    blocks, as a synthetic set of that factor would start from.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), 2), settings.evaluation.networks)
    moments, names = (dataset.mean, dataset.std), dataset.class_names

    def draw(key: jax.Array) -> SyntheticSet:
        classes = random_images(dataset, ipc * factor**2, key)
        packed = np.stack([pack(images, factor) for images in classes])
        return synthetic_set.from_pixels(packed, *moments, names, factor=factor)

    sets, content = (place(draw(key)) for key in keys), f"{ipc}" + (f" of factor {factor}" if factor > 1 else "")
    return _judge(settings, dataset, moments, sets, _epochs(settings), "random real images", content, resume_file)


def judge_whole(settings: Settings, dataset: Dataset, resume_file: Path | None = None) -> Accuracy:
    """Does the same for the whole training set, which gives the upper bound."""
    moments = dataset.mean, dataset.std
    whole = place(SyntheticSet(*dataset.flat(), *moments, dataset.class_names))
    sets, epochs = [whole] * settings.evaluation.networks, settings.evaluation.whole_epochs
    return _judge(settings, dataset, moments, sets, epochs, "whole training set", "all", resume_file)


def check_fits(synthetic: SyntheticSet, dataset: Dataset) -> None:
    """Raises a `UserError` for a set whose images or classes are not those of the data set."""
    if synthetic.images.shape[1:] != dataset.image_shape:
        raise UserError(
            f"the synthetic images are {synthetic.images.shape[1:]}, those of data set {dataset.name!r} "
            f"{dataset.image_shape}; name the data set it was made from with --data.source and --data.path"
        )
    if synthetic.class_names != dataset.class_names:
        raise UserError(
            f"the synthetic set has {_classes(synthetic)}, data set {dataset.name!r} has {_classes(dataset)}; "
            "name the data set it was made from with --data.source and --data.path"
        )


def _classes(labelled: SyntheticSet | Dataset) -> str:
    return f"{len(labelled.class_names)} classes ({', '.join(labelled.class_names[:4])}, ...)"


def _epochs(settings: Settings) -> int:
    assert settings.evaluation.epochs is not None, "the configuration is not resolved"
    return settings.evaluation.epochs


def place(small: SyntheticSet) -> Examples:
    """Places the images of a set on the device, unpacked."""
    small = small.unpacked()
    return jax.device_put(Examples(small.images, small.labels, small.mean, small.std))


def _judge(
    settings: Settings,
    dataset: Dataset,
    moments: tuple[np.ndarray, np.ndarray],
    sets: Iterable[Examples],
    epochs: int,
    description: str,
    content: str,
    resume_file: Path | None,
) -> Accuracy:
    """Trains one network on every set, all with the same compiled programs; `content` tells the sets from others."""
    test = training.test_examples(dataset.test_images, dataset.test_labels, *moments)
    network = networks.create(settings.network, dataset.num_classes, dataset.image_shape)
    recipe = training.make_recipe(settings.evaluation, settings.augment)
    key = jax.random.fold_in(jax.random.key(settings.seed), 3)  # 0 and 1 belong to condensing, 2 to random real images
    digest = ""
    if resume_file is not None:
        digest = _digest(settings.network, recipe, epochs, settings.seed, dataset.fingerprint(), content)
    measured = _read_measured(resume_file, digest)[: settings.evaluation.networks]
    total = settings.evaluation.networks
    with progress_bar(None, description, settings.progress, total, initial=len(measured)) as bar:
        for i, examples in enumerate(sets):
            if i < len(measured):
                continue
            start, compiled = time.perf_counter(), compilation.seconds()
            on_progress = _fraction_of_one(bar, len(examples.labels), recipe, epochs)
            variables = training.train(network, recipe, jax.random.fold_in(key, i), examples, epochs, on_progress)
            accuracy = training.accuracy(network, variables, test)
            seconds = time.perf_counter() - start - (compilation.seconds() - compiled)
            measured.append({"accuracy": accuracy, "seconds": seconds})
            if resume_file is not None:
                files.write_json(resume_file, {"digest": digest, "networks": measured})
            bar.n = i + 1
            bar.set_postfix(accuracy=f"{100 * np.mean([entry['accuracy'] for entry in measured]):.1f}%")
    return Accuracy.of((entry["accuracy"] for entry in measured), sum(entry["seconds"] for entry in measured))


def _digest(*parts: Any) -> str:
    """Tells an evaluation from others, by all that its accuracies depend on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_measured(path: Path | None, digest: str) -> list[dict[str, float]]:
    """Accuracy and seconds of the networks that were measured; none where the file is of another evaluation."""
    try:
        stored = files.read_json(path) if path is not None else None
        if stored is None or stored["digest"] != digest:
            return []
        return [{name: float(entry[name]) for name in ("accuracy", "seconds")} for entry in stored["networks"]]
    except (UserError, TypeError, KeyError, ValueError):
        return []


def _fraction_of_one(bar: Any, n: int, recipe: Recipe, epochs: int) -> Callable[[int], None]:
    total = epochs * -(-n // min(recipe.batch_size, n))
    return lambda steps: bar.update(steps / total)
