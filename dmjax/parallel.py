"""Classes over devices: the only file that knows how many devices there are.

The class axis [C, ...] becomes [devices, C / devices, ...], padded with empty classes where it does not divide;
`pmap` runs the same program on every share. One device is the same code.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmjax.step import DEVICES, Chunk, ClassData, State

_STATE_AXES = State(images=0, optimizer=0, iteration=None)


class ClassSharding:
    """Places C classes on the local devices, in contiguous shares.

    Attributes:
      num_classes: C.
      num_devices: How many devices take a share; no more than there are classes.
      per_device: Classes of one share, padding included.
    """

    def __init__(self, num_classes: int, devices: Sequence[Any] | None = None):
        devices = list(devices or jax.local_devices())[:num_classes]
        self.num_classes = num_classes
        self.num_devices = len(devices)
        self.per_device = -(-num_classes // len(devices))
        self.devices = devices
        mesh = Mesh(np.array(devices), (DEVICES,))
        self._split = NamedSharding(mesh, PartitionSpec(DEVICES))
        self._same = NamedSharding(mesh, PartitionSpec())

    def split(self, tree: Any) -> Any:
        """Host arrays [C, ...] -> arrays [devices, C/devices, ...], every device holding its own share only."""
        return jax.tree.map(self._split_leaf, tree)

    def _split_leaf(self, array: np.ndarray) -> jax.Array:
        def share(position):
            first = (position[0].start or 0) * self.per_device
            taken = np.asarray(array[first : first + self.per_device])  # a memory map is read here, and no further
            missing = self.per_device - len(taken)
            return np.pad(taken, [(0, missing)] + [(0, 0)] * (taken.ndim - 1))[None]

        shape = (self.num_devices, self.per_device, *np.shape(array)[1:])
        return jax.make_array_from_callback(shape, self._split, share)

    def same(self, tree: Any) -> Any:
        """The same value on every device."""
        return jax.device_put(tree, self._same)

    def join(self, tree: Any) -> Any:
        """Arrays [devices, C/devices, ...] -> host arrays [C, ...] without the padding."""
        return jax.tree.map(lambda x: _merge(jax.device_get(x))[: self.num_classes], tree)

    def put_state(self, state: State) -> State:
        """Places a host state on the devices."""
        images, optimizer = self.split((state.images, state.optimizer))
        return State(images, optimizer, self.same(np.int32(state.iteration)))

    def get_state(self, state: State) -> State:
        """The inverse of `put_state`; it does not depend on the number of devices."""
        images, optimizer = self.join((state.images, state.optimizer))
        return State(images, optimizer, np.int32(jax.device_get(state.iteration)))

    def put_data(self, images: np.ndarray, counts: np.ndarray) -> ClassData:
        """Places the real images uint8 [C, N, H, W, D] of every class on the device that owns the class."""
        index = np.arange(self.num_classes, dtype=np.int32)
        return self.split(ClassData(images, np.asarray(counts, np.int32), index))

    def compile(self, chunk: Chunk, key: jax.Array, state: State, data: ClassData) -> Chunk:
        """Compiles a chunk for these devices; the state that is passed in is donated at every call."""
        mapped = jax.pmap(
            chunk,
            axis_name=DEVICES,
            in_axes=(None, _STATE_AXES, 0),
            out_axes=(_STATE_AXES, 0),
            devices=self.devices,
            donate_argnums=(1,),
        )
        return mapped.lower(key, state, data).compile()

    def losses(self, losses: jax.Array) -> np.ndarray:
        """Per-class losses [devices, length, C/devices] -> float64 [length]: their sum over classes, divided by C."""
        return np.asarray(jax.device_get(losses), np.float64).sum(axis=(0, 2)) / self.num_classes


def _merge(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[2:])
