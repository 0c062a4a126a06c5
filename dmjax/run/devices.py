"""Classes over devices: the only file that knows how many devices there are.

The class axis [C, ...] becomes [devices, C / devices, ...], padded with empty classes where it does not divide;
`pmap` runs the same program on every share. One device is the same code, and so are the devices of several processes,
each of which holds the shares of its own devices only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmjax.common import backend
from dmjax.common.errors import UserError
from dmjax.methods.base import DEVICES, ClassData
from dmjax.run import processes


def chosen(config: Any, num_classes: int) -> list[Any]:
    """The devices of all processes that the classes of a run are spread over.

    These are all devices. Of the cores of a CPU it is one where a method says so, and otherwise no more than make the
    shares smaller: what pads a share costs time that the others want.
    """
    devices = jax.devices()
    if not backend.cores_are_devices():
        return devices
    if not config.method.spreads_over_cores(config):
        return devices[:1]
    share = -(-num_classes // len(devices))
    return devices[: -(-num_classes // share)]


class ClassSharding:
    """Places C classes on the devices of all processes, in contiguous shares.

    Attributes:
      num_classes: C.
      num_devices: How many devices take a share; no more than there are classes, but for TPUs.
      per_device: Classes of one share, padding included.
    """

    def __init__(self, num_classes: int, devices: Sequence[Any] | None = None):
        devices = list(devices or jax.devices())
        if devices[0].platform != "tpu":  # the chips of a TPU slice are wired so that all of them must take part
            devices = _spread(devices, num_classes)
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

    def _split_leaf(self, array: np.ndarray, row: int | None = None) -> jax.Array:
        """Host array [C, ...] -> array [devices, C/devices, ...]; with `row`, zeros make the last axis so long."""
        shape = (self.num_devices, self.per_device, *np.shape(array)[1:])
        wider = 0 if row is None else row - shape[-1]

        def share(position):
            first = (position[0].start or 0) * self.per_device
            taken = array[first : first + self.per_device]
            missing = self.per_device - len(taken)
            # A memory map goes to the device without a copy on the way, unless something has to be filled.
            if missing or wider or not isinstance(array, np.memmap):
                inner = [(0, 0)] * (taken.ndim - 2) + [(0, wider)] * (taken.ndim > 1)
                taken = np.pad(taken, [(0, missing), *inner])
            return np.asarray(taken)[None]

        return jax.make_array_from_callback((*shape[:-1], shape[-1] + wider), self._split, share)

    def same(self, tree: Any) -> Any:
        """The same value on every device."""
        return jax.device_put(tree, self._same)

    def put_keys(self, keys: Sequence[jax.Array]) -> jax.Array:
        """The bits of keys on every device, as `compile` wants them: typed keys cannot be placed on other hosts."""
        return self.same(np.stack([jax.random.key_data(key) for key in keys]))

    def join(self, tree: Any) -> Any:
        """Arrays [devices, C/devices, ...] -> host arrays [C, ...] without the padding."""
        return jax.tree.map(lambda x: _merge(_on_host(x))[: self.num_classes], tree)

    def share_shapes(self, tree: Any) -> Any:
        """Shapes [C, ...] -> the shapes that `split` makes of them."""
        lead = (self.num_devices, self.per_device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype), tree)

    def put_state(self, state: Any, axes: Any) -> Any:
        """Places a host state on the devices; `axes` is as `Method.state_axes`."""
        return _by_axis(self.split, self.same, axes, state)

    def get_state(self, state: Any, axes: Any) -> Any:
        """The inverse of `put_state`; the result does not depend on the number of devices."""
        return _by_axis(self.join, lambda tree: jax.tree.map(_one, tree), axes, state)

    def state_shapes(self, state: Any, axes: Any) -> Any:
        """The shapes of a host state -> those that `put_state` makes of it."""
        return _by_axis(self.share_shapes, lambda tree: tree, axes, state)

    def put_data(self, images: np.ndarray, counts: np.ndarray) -> ClassData:
        """Places the real images uint8 [C, N, H, W, D] of every class on the device that owns the class.

        An image is a row, which is filled with zeros where the device wants longer ones.
        """
        data = ClassData.of(images, counts)
        rows = self._split_leaf(data.images, self._row(data.images.shape[-1]))
        return ClassData(rows, *self.split((data.count, data.index)))

    def data_shapes(self, data: ClassData) -> ClassData:
        """The shapes of `ClassData.of` -> those that `put_data` makes of it."""
        images = jax.ShapeDtypeStruct((*data.images.shape[:-1], self._row(data.images.shape[-1])), data.images.dtype)
        return self.share_shapes(data._replace(images=images))

    def _row(self, pixels: int) -> int:
        """The length of the row of an image: its numbers, rounded up to whole lanes."""
        lanes = _lanes(self.devices[0])
        return -(-pixels // lanes) * lanes

    def compile(
        self, program: Callable, keys: jax.Array, states: Sequence[Any], axes: Any, data: ClassData, constants: Any
    ) -> Any:
        """Compiles a program for these devices; the states that are passed in are donated at every call.

        Args:
          program: `(keys [R], R states, data, constants) -> (R states, losses [R, length, C])`. The losses of the
            compiled program are their sums over classes [R, length], the same everywhere.
          keys: Keys of R runs, from `put_keys`.
          states: The state of each run, from `put_state`.
          axes: Which of its leaves have the class axis, as `Method.state_axes`.
          data: From `put_data`.
          constants: From `same`.
        """

        def share(keys, states, data, constants):
            states, losses = program(jax.random.wrap_key_data(keys), states, data, constants)
            return states, jax.lax.psum(losses.sum(axis=2), DEVICES)

        all_axes = [axes] * len(states)
        mapped = jax.pmap(
            share,
            axis_name=DEVICES,
            in_axes=(None, all_axes, 0, None),
            out_axes=(all_axes, None),
            devices=self.devices,
            donate_argnums=(1,),
        )
        return mapped.lower(keys, list(states), data, constants).compile()

    def losses(self, losses: jax.Array) -> np.ndarray:
        """The losses [R, length] of a compiled program on the host: sums over classes, divided by C."""
        return np.asarray(_one(losses), np.float64) / self.num_classes


def _lanes(device: Any) -> int:
    """Rows are a multiple of so many numbers: a TPU would otherwise copy the data set before it gathers from it."""
    return 128 if device.platform == "tpu" else 1


def _spread(devices: Sequence[Any], num_classes: int) -> list[Any]:
    """At most one device a class, of every process one at least, and those of a process side by side."""
    owners = [d.process_index for d in devices]
    if len(set(owners)) > num_classes:
        raise UserError(f"{len(set(owners))} processes are too many for {num_classes} classes: at most one a class")
    turn = [owners[:i].count(owner) for i, owner in enumerate(owners)]
    chosen = sorted(range(len(devices)), key=lambda i: (turn[i], owners[i]))[:num_classes]
    return [devices[i] for i in sorted(chosen, key=lambda i: (owners[i], turn[i]))]


def _by_axis(split: Callable, same: Callable, axes: Any, tree: Any) -> Any:
    """Applies `split` to the parts of a tree whose axis is 0 in the prefix `axes`, and `same` to those of None."""
    one = lambda axis, part: same(part) if axis is None else split(part)  # noqa: E731
    return jax.tree.map(one, axes, tree, is_leaf=lambda axis: axis is None)


def _on_host(array: jax.Array) -> np.ndarray:
    """The whole array, also where parts of it are on the devices of other processes."""
    if processes.count() == 1:
        return jax.device_get(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _one(array: jax.Array) -> np.ndarray:
    """A value that is the same on all devices."""
    return jax.device_get(array.addressable_data(0))


def _merge(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[2:])
