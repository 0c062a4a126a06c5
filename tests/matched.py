"""What the tests of the family of distribution matching share: small methods, pools in memory, some iterations."""

import dataclasses

import jax
import numpy as np

from dmjax import methods
from dmjax.config import Config, NetworkConfig, PretrainedConfig
from dmjax.methods import embedding
from dmjax.methods.base import Chunks
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.devices import ClassSharding
from dmjax.run.program import RunState, make_chunk, make_problem, run_key, state_axes
from dmjax.settings import experiment, fields

PLAIN = OptimizerConfig("sgd", 1.0, ())  # then an iteration subtracts the gradient itself
FAMILY = ("match", "dm", "blend", "idm", "iid", "datadam", "m3d", "dsdm", "dance", "tgdd", "ncfm")
SMALL = {
    "batch_real": 4,
    "iterations": 4,
    "match.frequencies": 16,
    "match.history_after": 1,
    "queue.size": 3,
    "queue.start": 2,
    "queue.every": 2,
    "queue.steps": 2,
    "queue.batch_size": 6,
}
POOL = PretrainedConfig(networks=2, epochs=1, states=3)


class Untrained:
    """Random networks in the place of trained ones, as `TrainedNetworks` gives them."""

    seconds = waited = 0.0

    def __init__(self, problem, networks=2, states=3):
        keys = jax.random.split(jax.random.key(5), networks * states)
        variables = [jax.device_get(embedding.random(problem, key)) for key in keys]
        self.states = [
            [Loaded(variables[n * states + s], step=10 * s, accuracy=s / (states - 1)) for s in range(states)]
            for n in range(networks)
        ]

    def all(self):
        return self.states


class Loaded:
    """A state that is in memory."""

    def __init__(self, variables, step, accuracy):
        self.variables, self.step, self.accuracy = variables, step, accuracy

    def load(self):
        return self.variables


def config_of(method, ipc=1, **changes):
    network = NetworkConfig(width=4, depth=2)
    config = Config(method=method, network=network, ipc=ipc, progress=False, pretrained=POOL, **changes)
    return experiment.resolve(config)


def problem_of(config, dataset, chunks=None):
    problem = dataclasses.replace(make_problem(config, dataset), chunks=chunks or Chunks())
    return dataclasses.replace(problem, trained=Untrained(problem))


def small(name, **changes):
    method = methods.create(name)
    known = fields.flatten(method)
    return fields.replace(method, {n: v for n, v in SMALL.items() if n in known} | changes)


def run(config, dataset, devices=1, length=2, times=1, chunks=None):
    """The state after some iterations on so many devices, and the losses of each."""
    axes = state_axes(config.method)
    sharding = ClassSharding(dataset.num_classes, jax.local_devices()[:devices])
    problem = problem_of(config, dataset, chunks)
    constants = sharding.same(config.method.constants(problem))
    start = jax.device_get(config.method.start(problem, config.seed))
    states = [sharding.put_state(RunState(np.int32(0), start), axes)]
    keys, data = sharding.put_keys([run_key(config.seed)]), sharding.put_data(dataset.images, dataset.counts)
    program = sharding.compile(make_chunk(problem, length), keys, states, axes, data, constants)
    losses = []
    for _ in range(times):
        states, of_chunk = program(keys, states, data, constants)
        losses.append(sharding.losses(of_chunk)[0])
    return sharding.get_state(states[0], axes).method, np.concatenate(losses)
