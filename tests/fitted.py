"""What the tests of methods that fit a model share: a small data set, and some iterations on some devices."""

import dataclasses

import jax
import numpy as np

from dmjax import Config, Dataset, NetworkConfig, OptimizerConfig
from dmjax.config import EvaluationConfig
from dmjax.methods.base import Chunks
from dmjax.methods.kernel import KIP
from dmjax.methods.labels import LD
from dmjax.methods.unrolled import DD
from dmjax.run.devices import ClassSharding
from dmjax.run.program import RunState, make_chunk, make_problem, run_key, state_axes
from dmjax.settings import experiment

CLASSES = 3
PLAIN = OptimizerConfig("sgd", 1.0, ())  # then an iteration subtracts the derivative itself
METHODS = {
    "dd": DD(iterations=100, batch_target=12, optimizer=PLAIN),
    "ld": LD(batch_target=12, optimizer=PLAIN),
    "ld second order": LD(batch_target=12, optimizer=PLAIN, variant="second_order"),
    "kip": KIP(batch_target=12, optimizer=PLAIN, learn_labels=True),
}


def make_dataset(rng):
    """Three classes of unequal size, which differ in where they are bright."""

    def draw(counts):
        shown = np.repeat(np.arange(CLASSES), counts)
        images = rng.uniform(0, 0.5, (len(shown), 8, 8))
        images[np.arange(len(shown)), 2 * shown] += 0.5
        return images, shown

    return Dataset.from_arrays(*draw([9, 7, 5]), *draw([20, 20, 20]))


def config_of(method, ipc=2, network="MLP"):
    config = Config(method=method, network=NetworkConfig(name=network), ipc=ipc, progress=False)
    return experiment.resolve(dataclasses.replace(config, evaluation=EvaluationConfig(networks=2, epochs=2)))


def run(config, dataset, devices=1, length=1, chunks=None):
    """State before and after some iterations on so many devices, and the losses [length]."""
    classes, axes = dataset.num_classes, state_axes(config.method)
    sharding = ClassSharding(classes, jax.local_devices()[:devices])
    problem = dataclasses.replace(make_problem(config, dataset), chunks=chunks or Chunks())
    start = jax.device_get(config.method.start(problem, config.seed))
    states = [sharding.put_state(RunState(np.int32(0), start), axes)]
    keys, data = sharding.put_keys([run_key(config.seed)]), sharding.put_data(dataset.images, dataset.counts)
    program = sharding.compile(make_chunk(problem, length), keys, states, axes, data, None)
    states, losses = program(keys, states, data, None)
    return start, sharding.get_state(states[0], axes).method, sharding.losses(losses)[0]
