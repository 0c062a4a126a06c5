"""Judging a set: networks trained from scratch on it and tested on real images (Zhao & Bilen, section 3.1)."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmjax import networks
from dmjax.common import backend
from dmjax.common.errors import UserError
from dmjax.config import Config, EvaluateConfig
from dmjax.data import Dataset, synthetic_set
from dmjax.data.factor import pack
from dmjax.data.sampling import random_images
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import on_device, pretrained, testing, training
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.measuring import Settings, digest, measure_each
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.pretrained import TrainedNetworks
from dmjax.evaluation.testing import Tested
from dmjax.evaluation.training import Recipe

_AT_ONCE_ON_CPU = 2  # networks, each in a thread: the layers of one alone are too small to keep all cores busy
_MOMENTS = 10  # of a training, among which the best is looked for


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
    placed, content = on_device.place(synthetic), synthetic.digest() if resume_file else ""
    return _judge(settings, dataset, moments, placed, _epochs(settings), description, content, resume_file)


def judge_random_real(
    settings: Settings, dataset: Dataset, ipc: int, resume_file: Path | None = None, factor: int = 1
) -> Accuracy:
    """Does the same for random real images, drawn anew for every network.

    There are `ipc` stored images per class. With a factor each of them holds factor^2 real images, reduced to its
    blocks, as a synthetic set of that factor would start from.
    """
    assert settings.evaluation.networks is not None, "the configuration is not resolved"
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), 2), settings.evaluation.networks)
    moments, names = (dataset.mean, dataset.std), dataset.class_names

    def draw(i: int) -> Examples:
        classes = random_images(dataset, ipc * factor**2, keys[i])
        packed = np.stack([pack(images, factor) for images in classes])
        return on_device.place(synthetic_set.from_pixels(packed, *moments, names, factor=factor))

    content = f"{ipc}" + (f" of factor {factor}" if factor > 1 else "")
    return _judge(settings, dataset, moments, draw, _epochs(settings), "random real images", content, resume_file)


def judge_whole(settings: Settings, dataset: Dataset, resume_file: Path | None = None) -> Accuracy:
    """Does the same for the whole training set and its hard labels, which gives the upper bound."""
    moments = dataset.mean, dataset.std
    whole = on_device.place_whole(dataset)
    epochs = settings.evaluation.whole_epochs
    description = "whole training set"
    return _judge(settings, dataset, moments, whole, epochs, description, "all", resume_file, "hard")


def check_fits(synthetic: SyntheticSet, dataset: Dataset) -> None:
    """Raises a `UserError` for a set whose images or classes are not those of the data set."""
    if synthetic.images.shape[1:] != dataset.image_shape:
        raise UserError(
            f"the synthetic images are {synthetic.images.shape[1:]}, those of data set {dataset.name!r} "
            f"{dataset.image_shape}; name the data set it was made from with --data.source and --data.path"
        )
    if (synthetic.whitening is None) != (dataset.whitening is None):
        known = "is whitened, the data are not" if dataset.whitening is None else "is not whitened, the data are"
        raise UserError(f"the synthetic set {known}; --data.zca says which of the two the data are")
    if synthetic.whitening is not None and not synthetic.whitening.is_close(dataset.whitening):
        raise UserError(
            "the synthetic set was whitened otherwise than the data; give the --data.zca-regularization and the "
            "training images that it was made with"
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


def _judge(
    settings: Settings,
    dataset: Dataset,
    moments: tuple[np.ndarray, np.ndarray],
    sets: Examples | Callable[[int], Examples],
    epochs: int,
    description: str,
    content: str,
    resume_file: Path | None,
    labels: str | None = None,
) -> Accuracy:
    """Trains all networks on one set, or network i on `sets(i)`, with the same compiled programs.

    `content` tells the sets from others. With `labels` they are of this kind, whatever the settings say.
    """
    test = on_device.place_test(dataset.test_images, dataset.test_labels, *moments)
    network = networks.create(settings.network, dataset.num_classes, dataset.image_shape)
    recipe = training.make_recipe(settings.evaluation, settings.augment)
    recipe = recipe if labels is None else recipe._replace(labels=labels)
    key = jax.random.fold_in(jax.random.key(settings.seed), 3)  # 0 and 1 belong to condensing, 2 to random real images
    pool = _teachers(settings, dataset) if recipe.labels in ("teacher", "teacher-views") else None

    @functools.cache  # looked up once, when the first network is trained
    def teachers() -> Any:
        return pool and jax.device_put(pretrained.stack([of_one[-1] for of_one in pool.all()]))

    def labelled(examples: Examples) -> Examples:
        return _labelled(network, recipe, examples, teachers())

    one = None if callable(sets) else functools.cache(functools.partial(labelled, sets))  # labelled once
    preparing = threading.Lock()  # for what is done once, although several networks ask for it

    def train_and_test(i: int, on_progress: Callable[[float], None]) -> Tested:
        with preparing:
            examples = labelled(sets(i)) if one is None else one()
            per_view = teachers() if recipe.labels == "teacher-views" else None
        total = epochs * -(-len(examples.labels) // min(recipe.batch_size, len(examples.labels)))
        each = lambda steps: on_progress(steps / total)  # noqa: E731
        arguments = network, recipe, jax.random.fold_in(key, i), examples, epochs
        if not settings.evaluation.best:
            return testing.test(network, training.train(*arguments, each, per_view), test)
        return _best(*arguments, each, per_view, test)

    about = (settings.network, recipe, epochs, content, *(["best"] if settings.evaluation.best else []))
    about = (*about, *([pool.about()] if pool else []))
    return measure_each(settings, dataset, train_and_test, about, description, resume_file, networks_at_once())


def networks_at_once() -> int:
    """How many networks are trained at the same time."""
    return _AT_ONCE_ON_CPU if backend.current() == "cpu" else 1


def _best(
    network: nn.Module,
    recipe: Recipe,
    key: jax.Array,
    examples: Examples,
    epochs: int,
    on_progress: Callable[[int], None],
    teachers: Any,
    test: Examples,
) -> Tested:
    """Trains and tests like any other, and tests at ten moments before the end besides, the end being one of them."""
    plan = training.make_plan(recipe, len(examples.labels), epochs)
    state = training.start(network, plan, key, examples)
    results = []
    for epoch in sorted({max(1, round(epochs * k / _MOMENTS)) for k in range(1, _MOMENTS + 1)}):
        until = epoch * plan.per_epoch
        state = training.advance(network, recipe, plan, state, key, examples, until, on_progress, teachers)
        results.append(testing.test(network, state.variables, test))
    return results[-1]._replace(best=max(result.accuracy for result in results))


def teachers_digest(settings: Settings, dataset: Dataset) -> str:
    """Tells the networks that label a set from others; empty where none do."""
    return digest(_teachers(settings, dataset).about()) if settings.evaluation.is_taught else ""


def _teachers(settings: Settings, dataset: Dataset) -> TrainedNetworks:
    """The networks that label images where a teacher does."""
    if not isinstance(settings, Config | EvaluateConfig):
        raise UserError("a teacher's labels need the networks of a configuration that has --pretrained")
    return TrainedNetworks(settings, dataset)


def _labelled(network: nn.Module, recipe: Recipe, examples: Examples, teachers: Any) -> Examples:
    """The images with the labels that the recipe names; those of every view are made while training."""
    if recipe.labels == "teacher":
        return examples._replace(labels=testing.teach(network, teachers, examples, recipe.temperature))
    if recipe.labels == "stored" or examples.labels.ndim == 1:
        return examples
    return examples._replace(labels=jnp.argmax(examples.labels, axis=1).astype(jnp.int32))
