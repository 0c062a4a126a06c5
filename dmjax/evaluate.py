"""Evaluation: networks trained from scratch on a small set, tested on real images.

    python -m dmjax.evaluate --synthetic runs/tiny/synthetic.npz

    python -m dmjax.evaluate --synthetic runs/tiny/synthetic.npz --network.name ConvNetD2BN

    python -m dmjax.evaluate --synthetic runs/mnist/synthetic.npz --pool cross --json cross.json

    python -m dmjax.evaluate --config experiments/mnist.py --random-real 10

--config FILE names an experiment whose data, network and recipe are the defaults of the other flags.
"""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmjax import artifacts, cli, compilation, coreset, experiment, fields, files, networks, training
from dmjax.artifacts import SyntheticSet
from dmjax.config import AugmentConfig, Config, EvaluateConfig, NetworkConfig
from dmjax.data import Dataset
from dmjax.data import load as load_dataset
from dmjax.errors import UserError
from dmjax.progress import progress_bar
from dmjax.training import Examples, Recipe


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Test accuracies in [0, 1].

    Attributes:
      mean: Over networks.
      std: The population standard deviation.
      values: Of each network.
      training_seconds: To train and test them all, over all starts, without compilation.
    """

    mean: float
    std: float
    values: tuple[float, ...]
    training_seconds: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float], seconds: float = 0.0) -> "Accuracy":
        """That of networks with these accuracies."""
        values = tuple(values)
        return cls(float(np.mean(values)), float(np.std(values)), values, seconds)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} +- {100 * self.std:.1f} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "values": list(self.values)}


def evaluate(
    synthetic: SyntheticSet,
    dataset: Dataset | None = None,
    *,
    network: NetworkConfig | None = None,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    description: str = "evaluating",
    kept: Path | None = None,
    **evaluation: Any,
) -> Accuracy:
    """Trains networks on the synthetic set and tests them on the data set's test images.

    Args:
      synthetic: The set.
      dataset: The real data; by default that of the run that made the set.
      network: The network to train; by default the one that made the set.
      augment: The augmentation while training; by default that of the run.
      seed: Of initialisations, order and augmentation.
      progress: Show a progress bar.
      description: Of the progress bar.
      kept: A file in which every network's accuracy is kept: what is there of the same evaluation is not measured
        again.
      **evaluation: Fields of `EvaluationConfig`, such as networks=3 and epochs=300; by default those of the run.
    """
    made_by = _config_of(synthetic)
    made_by = dataclasses.replace(made_by, evaluation=experiment.as_given(made_by))
    if augment is not None:
        made_by = dataclasses.replace(made_by, augment=augment)
        evaluation = {"strategy": augment.strategy, **evaluation}
    try:
        recipe = dataclasses.replace(made_by.evaluation, **evaluation)
    except TypeError as error:
        raise UserError(f"evaluate: {error}") from None
    network = made_by.network if network is None else network
    config = experiment.resolve(dataclasses.replace(made_by, evaluation=recipe, network=network))
    config = dataclasses.replace(config, seed=seed, progress=progress)
    dataset = dataset or load_dataset(config.data, progress)
    check_fits(synthetic, dataset)
    sets = [_place(synthetic)] * recipe.networks
    moments = synthetic.mean, synthetic.std
    what = synthetic.digest() if kept else ""
    return _evaluate(config, dataset, moments, sets, config.evaluation.epochs, description, what, kept)


def evaluate_random_real(
    config: Config | EvaluateConfig, dataset: Dataset, ipc: int, kept: Path | None = None
) -> Accuracy:
    """The same for `ipc` random real images per class, drawn anew for every network; `config` is resolved."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2), config.evaluation.networks)
    moments = dataset.mean, dataset.std
    draws = (coreset.random(dataset, ipc, key) for key in keys)
    sets = (_place(artifacts.from_pixels(draw, *moments, dataset.class_names)) for draw in draws)
    return _evaluate(config, dataset, moments, sets, config.evaluation.epochs, "random real images", str(ipc), kept)


def evaluate_whole(config: Config | EvaluateConfig, dataset: Dataset, kept: Path | None = None) -> Accuracy:
    """The same for the whole training set: the upper bound."""
    moments = dataset.mean, dataset.std
    whole = _place(SyntheticSet(*dataset.flat(), *moments, dataset.class_names))
    sets = [whole] * config.evaluation.networks
    return _evaluate(config, dataset, moments, sets, config.evaluation.whole_epochs, "whole training set", "all", kept)


def _place(small: SyntheticSet) -> Examples:
    return jax.device_put(Examples(small.images, small.labels, small.mean, small.std))


def _evaluate(
    config: Config | EvaluateConfig,
    dataset: Dataset,
    moments: tuple[np.ndarray, np.ndarray],
    sets: Iterable[Examples],
    epochs: int,
    description: str,
    what: str,
    kept: Path | None,
) -> Accuracy:
    """Trains one network on every set, all with the same compiled programs; `what` tells the sets from others."""
    test = training.test_examples(dataset.test_images, dataset.test_labels, *moments)
    network = networks.create(config.network, dataset.num_classes, dataset.image_shape)
    recipe = training.make_recipe(config.evaluation, config.augment)
    key = jax.random.fold_in(jax.random.key(config.seed), 3)  # 0 and 1 belong to condensing, 2 to random real images
    of = _digest(config.network, recipe, epochs, config.seed, dataset.fingerprint(), what) if kept else ""
    entries = _read_kept(kept, of)[: config.evaluation.networks]
    with progress_bar(None, description, config.progress, config.evaluation.networks, initial=len(entries)) as bar:
        for i, examples in enumerate(sets):
            if i < len(entries):
                continue
            start, compiled = time.perf_counter(), compilation.seconds()
            on_progress = _fraction_of_one(bar, len(examples.labels), recipe, epochs)
            variables = training.train(network, recipe, jax.random.fold_in(key, i), examples, epochs, on_progress)
            accuracy = training.accuracy(network, variables, test)
            seconds = time.perf_counter() - start - (compilation.seconds() - compiled)
            entries.append({"accuracy": accuracy, "seconds": seconds})
            if kept is not None:
                files.write_json(kept, {"of": of, "networks": entries})
            bar.n = i + 1
            bar.set_postfix(accuracy=f"{100 * np.mean([entry['accuracy'] for entry in entries]):.1f}%")
    return Accuracy.of((entry["accuracy"] for entry in entries), sum(entry["seconds"] for entry in entries))


def _digest(*parts: Any) -> str:
    """Tells an evaluation from others, by all that its accuracies depend on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_kept(path: Path | None, of: str) -> list[dict[str, float]]:
    """The accuracies and seconds of the networks that were measured; none where the file is of another evaluation."""
    try:
        stored = files.read_json(path) if path is not None else None
        if stored is None or stored["of"] != of:
            return []
        return [{name: float(entry[name]) for name in ("accuracy", "seconds")} for entry in stored["networks"]]
    except (UserError, TypeError, KeyError, ValueError):
        return []


def _fraction_of_one(bar: Any, n: int, recipe: Recipe, epochs: int) -> Callable[[int], None]:
    total = epochs * -(-n // min(recipe.batch_size, n))
    return lambda steps: bar.update(steps / total)


def _config_of(synthetic: SyntheticSet) -> Config:
    """The configuration of the run that made a set; the defaults for a set that was made otherwise."""
    try:
        return fields.from_dict(Config, synthetic.metadata.get("config", {}))
    except (TypeError, AttributeError, UserError) as error:
        raise UserError(f"the configuration in the metadata of the synthetic set is damaged: {error}") from None


def check_fits(synthetic: SyntheticSet, dataset: Dataset) -> None:
    """Raises a `UserError` for a set that was made from other data."""
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


def _classes(of: SyntheticSet | Dataset) -> str:
    return f"{len(of.class_names)} classes ({', '.join(of.class_names[:4])}, ...)"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="the rows that are in the table are in the --json file")


def _main(arguments: list[str]) -> None:
    compilation.use_cache()
    path, arguments = cli.take(arguments, "--synthetic")
    like, arguments = cli.take(arguments, "--config")
    synthetic, default = None, EvaluateConfig()
    if path is not None:
        synthetic = SyntheticSet.load(path)
        default = _like_run(_config_of(synthetic), Path(path))
    if like is not None:
        default = _like_run(experiment.load_config(like), default.synthetic)
    default = experiment.without_options(default, arguments)
    given = cli.parse(EvaluateConfig, default, arguments, "python -m dmjax.evaluate", f"{__doc__}")
    if given.augment.strategy != default.augment.strategy and given.evaluation.strategy is None:
        recipe = dataclasses.replace(given.evaluation, strategy=given.augment.strategy)  # whatever the method's is
        given = dataclasses.replace(given, evaluation=recipe)
    config = experiment.resolve(given, default)
    if (synthetic is None) == (config.random_real is None):
        raise UserError("give either --synthetic FILE.npz or --random-real IMAGES_PER_CLASS")
    if config.json is not None:
        files.check_writable(config.json)
    dataset = load_dataset(config.data, config.progress)
    named = dataclasses.replace(config.network, precision=default.network.precision)
    if config.pool is not None and named != networks.resolve(default.network):
        raise UserError(f"--pool {config.pool} names its networks; leave out --network.* but the precision")
    chosen = _pool(config)
    for network in chosen.values():  # what does not fit the images is said before anything is trained
        networks.create(network, dataset.num_classes, dataset.image_shape)
    if config.random_real is not None:
        coreset.check(dataset, config.random_real, "lower --random-real")
    what = str(path) if synthetic is not None else f"{config.random_real} random real images per class"
    recipe = config.evaluation
    print(f"{what}: test accuracy on {dataset.name}, {recipe.networks} networks each, {recipe.epochs} epochs\n")
    print("| network | accuracy | seconds | of them compiling |\n|---|---|---|---|", flush=True)
    report: dict[str, Any] = {"dataset": dataset.name, "set": what, "networks": {}, "seconds": 0.0}
    for name, network in chosen.items():
        start, compiled = time.perf_counter(), compilation.seconds()
        of_network = dataclasses.replace(config, network=network, evaluation=given.evaluation)
        accuracy = _measure(experiment.resolve(of_network), synthetic, dataset, name)
        seconds, compiling = time.perf_counter() - start, compilation.seconds() - compiled
        print(f"| {name} | {accuracy} | {seconds:.1f} | {compiling:.1f} |", flush=True)
        report["networks"][name] = {**accuracy.to_dict(), "seconds": seconds, "compile_seconds": compiling}
        report["seconds"] += seconds
        if config.json is not None:
            files.write_json(config.json, report)  # what is measured stays, whatever comes next


def _pool(config: EvaluateConfig) -> dict[str, NetworkConfig]:
    """The networks to train, by their short names."""
    if config.pool is None:
        return {networks.short_name(config.network): config.network}
    made = (NetworkConfig(name=name, precision=config.network.precision) for name in networks.POOLS[config.pool])
    return dict(zip(networks.POOLS[config.pool], map(networks.resolve, made), strict=True))


def _measure(config: EvaluateConfig, synthetic: SyntheticSet | None, dataset: Dataset, name: str) -> Accuracy:
    if synthetic is None:
        assert config.random_real is not None
        return evaluate_random_real(config, dataset, config.random_real)
    return evaluate(
        synthetic,
        dataset,
        network=config.network,
        augment=config.augment,
        seed=config.seed,
        progress=config.progress,
        description=name,
        **fields.flatten(config.evaluation),
    )


def _like_run(config: Config, synthetic: Path | None) -> EvaluateConfig:
    """The flags' defaults: what the run had, but for what is another for another network."""
    recipe = experiment.as_given(config)
    return EvaluateConfig(config.data, config.network, config.augment, recipe, config.method, synthetic)


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
