"""Networks trained on the whole training set once, saved at several steps, for all runs that want them.

    python -m dmjax.pretrain --config experiments/mnist.py --pretrained.networks 5 --pretrained.epochs 10

What is there is not trained again; the same command goes on where it was interrupted. Any flag of `dmjax.condense` is
taken, so that with those of a run its networks are made; data, network, augmentation and --pretrained.* count.
--config FILE names the experiment; its values are the defaults of all other flags.
"""

import sys

from tqdm import tqdm

from dmjax.common import compilation, signals
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.data import load as load_dataset
from dmjax.evaluation import pretrained
from dmjax.evaluation.pool_folder import State
from dmjax.evaluation.pretrained import Work
from dmjax.run import study
from dmjax.settings import cli, experiment


def pretrain(config: Config, dataset: Dataset | None = None) -> list[list[State]]:
    """Trains what is missing of the configured networks.

    Args:
      config: For `pretrained`, the network, the augmentation and the data.
      dataset: The real images; by default those of `config.data`.

    Returns:
      The states of each network from the first to the last; `state.load()` gives its variables.

    Raises:
      UserError: the input is at fault.
      KeyboardInterrupt: the states so far are saved.
    """
    config = experiment.resolve(config)
    with signals.handled():
        return pretrained.states(config, dataset or load_dataset(config.data, config.progress))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="the same command again goes on from the last state saved")


def _main(arguments: list[str]) -> None:
    compilation.use_cache()
    given, default = experiment.parse(Config, arguments, "python -m dmjax.pretrain", f"{__doc__}")
    config = experiment.resolve(experiment.settled(given, default))
    known = pretrained.states(config, load_dataset(config.data, config.progress), _announce)
    header = ["network", "states", "steps", "validation accuracy, first / middle / last", "seconds"]
    print(f"\n{study.markdown(header, [_row(of_one) for of_one in known])}\n\nfiles: {known[0][0].path.parents[1]}/")


def _announce(work: Work) -> None:
    """Says what is there and how long the rest will take."""
    if work.there == work.wanted:
        print(f"all {work.wanted} states are there", flush=True)
    else:
        about = tqdm.format_interval(work.seconds)
        print(
            f"{work.there} of {work.wanted} states are there; the rest takes about {about}, by a few steps", flush=True
        )


def _row(states: list[State]) -> list[str]:
    shown = [f"{100 * states[i].accuracy:.1f}" for i in (0, len(states) // 2, -1)]
    last = states[-1]
    return [last.path.parent.name, str(len(states)), str(last.step), f"{' / '.join(shown)} %", f"{last.seconds:.1f}"]


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
