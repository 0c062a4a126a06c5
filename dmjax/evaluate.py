"""Evaluation: networks trained from scratch on a small set, tested on real images.

    python -m dmjax.evaluate --synthetic runs/tiny/synthetic.npz

    python -m dmjax.evaluate --synthetic runs/tiny/synthetic.npz --network.name ConvNetD2BN

    python -m dmjax.evaluate --synthetic runs/mnist/synthetic.npz --pool cross --json cross.json

    python -m dmjax.evaluate --synthetic runs/mnist/synthetic.npz --evaluation.protocol idc

    python -m dmjax.evaluate --config experiments/mnist.py --random-real 10 --factor 2

    python -m dmjax.evaluate mnist-ipc1-best --data.source npz --data.path mnist.npz

--config FILE names an experiment whose data, network and recipe are the defaults of the other flags.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from dmjax import methods, networks
from dmjax.common import compilation, files, signals
from dmjax.common.errors import UserError, near_misses
from dmjax.config import AugmentConfig, Config, EvaluateConfig, EvaluationConfig, NetworkConfig
from dmjax.data import Dataset, released, sampling
from dmjax.data import load as load_dataset
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import protocols
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.judge import check_fits, judge, judge_random_real
from dmjax.settings import cli, experiment, fields
from dmjax.settings.check import check


def evaluate(
    synthetic: SyntheticSet | str | Path,
    dataset: Dataset | None = None,
    *,
    network: NetworkConfig | None = None,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    progress: bool = True,
    description: str = "evaluating",
    resume_file: Path | None = None,
    own: bool = False,
    **evaluation: Any,
) -> Accuracy:
    """Trains networks on a synthetic set and tests them on the data set's test images.

    Args:
      synthetic: The set, the path of its file, or the name of a released one.
      dataset: The real data; by default those of the run that made the set.
      network: The network to train; by default the one that made the set. A network of someone's own, `module:Class`,
        is imported only where it is named here.
      augment: The augmentation while training; by default that of the run.
      seed: Seed of initialisations, order and augmentation.
      progress: Show a progress bar.
      description: The text of the progress bar.
      resume_file: As for `dmjax.evaluation.judge.judge`.
      own: Judge the set in the way that its method learned it for, such as kernel regression for `KIP`.
      **evaluation: Fields of `EvaluationConfig`, such as networks=3 and epochs=300; by default those of the run.
    """
    synthetic = synthetic if isinstance(synthetic, SyntheticSet) else released.open_set(synthetic)
    made_by = _config_of(synthetic)
    if augment is not None:
        made_by = dataclasses.replace(made_by, augment=augment)
        evaluation = {"strategy": augment.strategy, **evaluation}
    known = [field.name for field in dataclasses.fields(EvaluationConfig)]
    if unknown := sorted(set(evaluation) - set(known)):
        raise UserError(f"evaluate: {unknown[0]!r} is no field of EvaluationConfig; {near_misses(unknown[0], known)}")
    recipe = dataclasses.replace(made_by.evaluation, **evaluation)
    config = dataclasses.replace(made_by, evaluation=recipe, network=network or _trusted(made_by.network))
    config = dataclasses.replace(experiment.resolve(config), seed=seed, progress=progress)
    dataset = dataset or load_dataset(config.data, progress)
    _compare_data(synthetic, dataset)
    with signals.handled():  # so that networks in threads stop, too
        if own:
            return _own(config, dataset, synthetic, resume_file)
        return judge(config, dataset, synthetic, description, resume_file)


def _config_of(synthetic: SyntheticSet) -> Config:
    """The configuration of the run that made a set; the defaults for a set that was made otherwise.

    What the method decided about the evaluation is open again. A file is not trusted with code: of a method of
    someone's own only its decisions remain.
    """
    try:
        config = fields.config_from_dict(synthetic.metadata.get("config", {}))
        check(config)
        evaluation = experiment.left_open(config)
    except (TypeError, AttributeError, UserError) as error:
        raise UserError(f"the configuration in the metadata of the synthetic set is damaged: {error}") from None
    own = isinstance(config.method, str) and ":" in config.method
    network = dataclasses.replace(config.network, precision="auto")  # what is fast here, not where it was made
    method = Config.method if own else config.method
    return dataclasses.replace(config, evaluation=evaluation, network=network, method=method)


def _trusted(network: NetworkConfig) -> NetworkConfig:
    """The network of a set; raises a `UserError` for one whose code would have to be imported."""
    if ":" in network.name:
        raise UserError(
            f"the set was made with the network {network.name!r}, which is code that a file is not trusted with: name "
            "it with --network.name (in Python network=NetworkConfig(name=...)) to import it, or name another one"
        )
    return network


def _own(
    config: Config | EvaluateConfig, dataset: Dataset, synthetic: SyntheticSet, resume_file: Path | None = None
) -> Accuracy:
    from dmjax.run.own_evaluation import judge_own  # what evaluates other sets does without the condensing side

    accuracy = judge_own(config, dataset, synthetic, resume_file)
    if accuracy is None:
        raise UserError(f"{methods.identifier(config.method)} has no evaluation of its own; leave out own")
    return accuracy


def _compare_data(synthetic: SyntheticSet, dataset: Dataset) -> None:
    """Refuses data that a set does not fit, and says so where it was made from other images than these."""
    check_fits(synthetic, dataset)
    about = synthetic.metadata.get("dataset")
    made_from = about.get("fingerprint") if isinstance(about, dict) else None
    if made_from is not None and made_from != dataset.fingerprint():
        print(f"note: the set was made from other images than those of {dataset.name!r} here", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="the rows that are in the table are in the --json file")


def _main(arguments: list[str]) -> None:
    compilation.use_cache()
    path, arguments = cli.take(cli.first_is("--synthetic", arguments), "--synthetic")
    like, arguments = cli.take(arguments, "--config")
    synthetic, default = None, EvaluateConfig()
    if path is not None:
        synthetic = released.open_set(path)
        default = _like_run(_config_of(synthetic), Path(path))
    if like is not None:
        default = _like_run(experiment.load_config(like), default.synthetic)
    default = experiment.without_options(default, arguments)
    given = cli.parse(default, arguments, "python -m dmjax.evaluate", f"{__doc__}", experiment.resolve)
    if given.augment.strategy != default.augment.strategy and given.evaluation.strategy is None:
        recipe = dataclasses.replace(given.evaluation, strategy=given.augment.strategy)  # whatever the method's is
        given = dataclasses.replace(given, evaluation=recipe)
    config = experiment.resolve(given, default)
    if like is None and config.pool is None and "--network.name" not in {a.partition("=")[0] for a in arguments}:
        _trusted(config.network)
    if (synthetic is None) == (config.random_real is None):
        raise UserError("name a set first, such as runs/tiny/synthetic.npz, or give --random-real IMAGES_PER_CLASS")
    if config.own and (synthetic is None or config.method.own_evaluation is None):
        raise UserError("--own needs a --synthetic set of a method that has an evaluation of its own")
    if config.own and config.pool is not None and not config.method.own_evaluation_is_random:
        raise UserError(f"{config.method.own_evaluation} trains no network; leave out --pool {config.pool}")
    if config.factor > 1 and config.random_real is None:
        raise UserError("--factor is for --random-real; a synthetic set has its own")
    if config.evaluation.is_taught and config.own:
        raise UserError(f"{config.method.own_evaluation} has labels of its own; leave out --evaluation.labels")
    if config.evaluation.is_taught and config.pool is not None:
        raise UserError(
            "the teachers are the networks of --pretrained, which are of one kind; leave out "
            f"--pool {config.pool} and name one with --network.name, or leave out --evaluation.labels"
        )
    if config.json is not None:
        files.check_writable(config.json)
    dataset = load_dataset(config.data, config.progress)
    if synthetic is not None:
        _compare_data(synthetic, dataset)
    named = dataclasses.replace(config.network, precision=default.network.precision)
    if config.pool is not None and named != networks.resolve(default.network):
        raise UserError(f"--pool {config.pool} names its networks; leave out --network.* but the precision")
    chosen = _pool(config)
    for network in chosen.values():  # what does not fit the images is said before anything is trained
        networks.create(network, dataset.num_classes, dataset.image_shape)
    if config.random_real is not None:
        remedy = "lower --random-real" if config.factor == 1 else "lower --random-real or --factor"
        sampling.check_enough(dataset, config.random_real * config.factor**2, remedy)
    what = str(path) if synthetic is not None else f"{config.random_real} random real images per class"
    what += f" of factor {config.factor}" if config.factor > 1 else ""
    recipe = config.evaluation
    how = f"by {config.method.own_evaluation}" if config.own else _how(recipe)
    print(f"{what}: test accuracy on {dataset.name}, {recipe.networks} networks each, {how}\n")
    print("| network | accuracy | seconds | of them compiling |\n|---|---|---|---|", flush=True)
    report: dict[str, Any] = {"dataset": dataset.name, "set": what, "seed": config.seed}
    report |= {"evaluation": dataclasses.asdict(recipe), "networks": {}, "seconds": 0.0}
    for name, network in chosen.items():
        start, compiled = time.perf_counter(), compilation.seconds()
        of_network = dataclasses.replace(config, network=network, evaluation=given.evaluation)
        accuracy = _measure(experiment.resolve(of_network), synthetic, dataset, name)
        seconds, compiling = time.perf_counter() - start, compilation.seconds() - compiled
        shown = name if not config.own or config.method.own_evaluation_is_random else config.method.own_evaluation
        print(f"| {shown} | {accuracy} | {seconds:.1f} | {compiling:.1f} |", flush=True)
        report["networks"][name] = {**accuracy.to_dict(), "seconds": seconds, "compile_seconds": compiling}
        report["seconds"] += seconds
        if config.json is not None:
            files.write_json(config.json, report)  # what is measured stays, whatever comes next


def _how(recipe: EvaluationConfig) -> str:
    """The recipe in a few words: its protocol, epochs, and labels that are not those of the set."""
    protocol = [f"protocol {recipe.protocol}"] if recipe.protocol is not None else []
    labels = [f"labels: {recipe.labels}"] if recipe.labels != protocols.PLAIN["labels"] else []
    return ", ".join([*protocol, f"{recipe.epochs} epochs", *labels])


def _pool(config: EvaluateConfig) -> dict[str, NetworkConfig]:
    """The networks to train, by their short names."""
    if config.pool is None:
        return {networks.short_name(config.network): config.network}
    made = (NetworkConfig(name=name, precision=config.network.precision) for name in networks.POOLS[config.pool])
    return dict(zip(networks.POOLS[config.pool], map(networks.resolve, made), strict=True))


def _measure(config: EvaluateConfig, synthetic: SyntheticSet | None, dataset: Dataset, name: str) -> Accuracy:
    if synthetic is None:
        assert config.random_real is not None
        return judge_random_real(config, dataset, config.random_real, factor=config.factor)
    if config.own:
        return _own(config, dataset, synthetic)
    return judge(config, dataset, synthetic, name)


def _like_run(config: Config, synthetic: Path | None) -> EvaluateConfig:
    """The flags' defaults: those of the run, with what its method decides left open."""
    shared = ("data", "network", "augment", "evaluation", "pretrained", "method")
    return EvaluateConfig(**{name: getattr(config, name) for name in shared}, synthetic=synthetic)


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
