"""What the compilers say of chips that are not here: the project's own programs, compiled for a described TPU or GPU.

The packages bring the compilers, and a description stands for the chips, so that a CPU is enough. A TPU's compiler puts
cycles of its own cost model on every instruction; that of a GPU names kernels and library calls only. Nothing of this
is a measurement.
"""

import collections
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from dmjax.benchmark import cases, hlo, programs
from dmjax.benchmark.cases import Case
from dmjax.common import backend
from dmjax.common.errors import UserError
from dmjax.config import BenchmarkConfig, EvaluationConfig
from dmjax.evaluation import training
from dmjax.methods.base import Chunks
from dmjax.run import memory

_TOP = 10  # source lines that are shown
_FRAMES = 60  # of a stack: the line of this package is often far from the innermost one


class Chip(NamedTuple):
    """What is published of a chip.

    Attributes:
      flops: Operations per second, by precision; those of a TPU beyond bfloat16 follow from its passes.
      bandwidth: Bytes per second of its memory.
      memory: Bytes.
      clock: Cycles per second; of TPUs the peak over the operations that the matrix units do in a cycle.
    """

    flops: Mapping[str, float]
    bandwidth: float
    memory: float
    clock: float


def _in_passes(bfloat16: float) -> dict[str, float]:
    """The operations per second of a TPU, which makes a product of more digits from 3 or 6 products of bfloat16."""
    return {"bfloat16": bfloat16, "tf32": bfloat16 / 3, "float32": bfloat16 / 6}


CHIPS = {
    "v4": Chip(_in_passes(275e12), 1228e9, 32e9, 1.05e9),
    "v5e": Chip(_in_passes(197e12), 819e9, 16e9, 1.5e9),
    "v5p": Chip(_in_passes(459e12), 2765e9, 95e9, 1.75e9),
    "v6e": Chip(_in_passes(918e12), 1640e9, 32e9, 1.75e9),
    "h100": Chip({"bfloat16": 989e12, "tf32": 494e12, "float32": 67e12}, 3350e9, 80e9, 1.98e9),
}


class Target(NamedTuple):
    """Chips that are described.

    Attributes:
      name: As given, such as v5e:4x4.
      chip: One of them.
      devices: All of them.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]

    @property
    def chips(self) -> int:
        """How many there are; those of v4 and v5p are two devices each."""
        return math.prod(int(n) for n in re.findall(r"\d+", self.name.partition(":")[2]))

    @property
    def platform(self) -> str:
        """As `dmjax.common.backend` names it."""
        return "gpu" if self.name == "h100" else "tpu"


@contextmanager
def described(name: str) -> Iterator[Target]:
    """The chips of a name, for which programs are traced and compiled inside.

    Raises:
      UserError: an unknown name, or a compiler that is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or (kind == "h100") == bool(shape):
        known = ", ".join(f"{chip}:1x1x1" for chip in CHIPS if chip != "h100")
        raise UserError(f"--target {name}: give {known} or a slice such as v5e:4x4, or h100")
    frames = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", _FRAMES)
    try:
        with backend.described("gpu" if kind == "h100" else "tpu"):
            yield Target(name, CHIPS[kind], _gpu() if kind == "h100" else _tpu(name))
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)


def _tpu(name: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler of TPUs is not installed: pip install libtpu")
    from jax.experimental import topologies

    # There is no metadata server to ask, and no chip whose type could be read.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody holds a chip, so two may compile
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # the compiler's own, of several kinds
        raise UserError(f"--target {name}: {str(error).splitlines()[0]}") from None


def _gpu() -> Sequence[Any]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise UserError('the compiler of GPUs is not installed: pip install "jax[cuda12]"')
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no driver to ask
    text = Path(__file__).with_name("h100.txtpb").read_text()
    described = topologies.get_topology_desc("", platform="cuda", target_config=text, topology="1 x 1 x 1")
    return described.devices


def estimates(
    chosen: Sequence[Case], config: BenchmarkConfig, target: Target, recipe: EvaluationConfig
) -> Iterator[dict[str, Any]]:
    """The estimate of every case; of one that does not fit, why."""
    for case in chosen:
        try:
            yield estimate(case, config, target, recipe)
        except UserError as error:
            why = str(error)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            why = str(error).splitlines()[0]
        else:
            continue
        yield {"name": case.name, "target": target.name, "chips": target.chips, "fits": False, "why": why}


def estimate(case: Case, config: BenchmarkConfig, target: Target, recipe: EvaluationConfig) -> dict[str, Any]:
    """Compiles one iteration, or one training step, for a target, and says what one device does in it."""
    start = time.perf_counter()
    if case.kind == "condense":
        compiled, chunks, share = _iteration(case, config, target)
    else:
        compiled, chunks, share = _training_step(case, config, target, recipe), None, 1.0
    seconds, program = time.perf_counter() - start, _program(compiled)
    analysis, chip, cycles = compiled.memory_analysis(), target.chip, program.cycles()
    estimated = cycles or None
    cost = {i.name: float(i.cycles if estimated else program.moved(i)) for i, _ in program.executed}
    settings, network = cases.settings(case, config), programs.build_network(case, config)
    batch = min(recipe.batch_size, case.num_classes * case.ipc)
    work = cases.work(case, settings, network.depth, batch) or (math.nan, math.nan)
    per_chip = len(target.devices) / target.chips
    arguments, temporary = int(analysis.argument_size_in_bytes), int(analysis.temp_size_in_bytes)
    return {
        "name": case.name,
        "target": target.name,
        "chips": target.chips,
        "devices": len(target.devices),
        "precision": config.network.precision,
        "chunks": chunks,
        "unit": "iteration" if case.kind == "condense" else "training step",
        "flops": program.flops() if estimated else None,
        "bytes": program.traffic() or None,
        "estimated_cycles": estimated,
        "estimated_ms": 1e3 * estimated / chip.clock if estimated else None,
        "floor_compute_ms": _known(1e3 * share * per_chip * work[0] / chip.flops[config.network.precision]),
        "floor_memory_ms": _known(1e3 * share * per_chip * work[1] / chip.bandwidth),
        "argument_bytes": arguments,
        "temporary_bytes": temporary,
        "memory_bytes": chip.memory / per_chip,
        "fits": memory.peak_bytes(compiled) <= chip.memory / per_chip,
        "collectives": program.collectives(),
        "library_calls": program.library_calls(),
        "kernels": _kernels(program) if target.platform == "gpu" else None,
        "compile_seconds": seconds,
        "most_expensive": [[line, n] for line, n in program.by_line(cost)[:_TOP]],
        "largest_read": _largest(program),
    }


def _iteration(case: Case, config: BenchmarkConfig, target: Target) -> tuple[Any, dict[str, int | None], float]:
    setup = programs.Setup(case, config, list(target.devices))
    limit = (
        config.memory_gb * 1e9
        if config.memory_gb
        else memory.SLACK * target.chip.memory * target.chips / len(target.devices)
    )
    compiled, chunks = setup.compile(1, *setup.abstract(), limit=limit)
    return compiled, chunks._asdict(), setup.sharding.per_device / case.num_classes


def _training_step(case: Case, config: BenchmarkConfig, target: Target, recipe: EvaluationConfig) -> Any:
    """One step of one network of the evaluation, on the first chip."""
    network, settings = programs.build_network(case, config), training.make_recipe(recipe, config.augment)
    examples = programs.small_set(case)
    plan = training.make_plan(settings, len(examples.labels), 1)
    on_chip = SingleDeviceSharding(target.devices[0])
    shaped = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype, sharding=on_chip)  # noqa: E731
    examples = jax.tree.map(shaped, examples)
    state = jax.eval_shape(lambda: training.start(network, plan, jax.random.key(0), examples))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_chip), state)
    key = jax.ShapeDtypeStruct((2,), np.uint32, sharding=on_chip)
    drops = jax.ShapeDtypeStruct((len(plan.drops),), np.int32, sharding=on_chip)

    def step(state, bits, examples, drops):
        key = jax.random.wrap_key_data(bits)
        return training.step(network, settings, plan.batch, state, key, examples, drops)

    return jax.jit(step, donate_argnums=0).lower(state, key, examples, drops).compile()


def _program(compiled: Any) -> hlo.Program:
    """The optimised program; an empty one where the compiler is newer than what jaxlib can read (v5p, v6e)."""
    try:
        return hlo.Program(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        return hlo.Program("ENTRY %unknown () -> () {\n}")


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _kernels(program: hlo.Program) -> dict[str, int]:
    """How often kernels that the compiler made itself run, by their kind."""
    counts: collections.Counter[str] = collections.Counter()
    for instruction, times in program.executed:
        if instruction.opcode == "fusion":
            kind = re.search(r"kind=k(\w+)", instruction.text)
            counts[kind.group(1).lower() if kind else "fusion"] += round(times)
    return dict(counts)


def _largest(program: hlo.Program) -> int:
    """The most bytes that any one instruction reads of an array, or writes."""
    touched = (program.operands(instruction) for instruction, _ in program.executed)
    return max((max([*read, written]) for read, written in touched), default=0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Estimates as a Markdown table."""
    header = (
        "| case | target | chips | precision | cycles, M | ms | floor, ms | GFLOP | GB | temporary, GB | compile, s |"
    )
    lines = [header, "|" + "---|" * (header.count("|") - 1)]
    for row in rows:
        if "why" in row:
            lines.append(f"| {row['name']} | {row['target']} | {row['chips']} |" + " - |" * (header.count("|") - 4))
            continue
        floor = max(filter(None, (row["floor_compute_ms"], row["floor_memory_ms"])), default=None)
        cells = [
            row["name"],
            row["target"],
            str(row["chips"]),
            row["precision"],
            _number(row["estimated_cycles"], 1e6),
            _number(row["estimated_ms"]),
            _number(floor),
            _number(row["flops"], 1e9),
            _number(row["bytes"], 1e9),
            _number(row["temporary_bytes"], 1e9),
            _number(row["compile_seconds"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:,.3g}" if value < 1000 * unit else f"{value / unit:,.0f}"


def describe(row: dict[str, Any]) -> str:
    """One case for the screen; every figure is an estimate."""
    if "why" in row:
        return f"{row['name']} on {row['target']}: does not fit: {row['why']}"
    cost = "cycles" if row["estimated_cycles"] else "bytes moved"
    total = row["estimated_cycles"] or row["bytes"] or 1.0
    if row["estimated_cycles"]:
        cycles, milliseconds = row["estimated_cycles"] / 1e6, row["estimated_ms"]
        estimated = f"estimated {cycles:,.2f} M cycles = {milliseconds:,.2f} ms per {row['unit']}"
    elif row["kernels"]:
        estimated = f"{sum(row['kernels'].values())} kernels per {row['unit']}, whose cycles are not known"
    else:
        estimated = "cycles that this jaxlib cannot read, since the compiler is newer"
    floors = [f"{row[f'floor_{name}_ms'] or math.nan:,.2f} ms {name}" for name in ("compute", "memory")]
    chunks = Chunks(**row["chunks"]) if row["chunks"] else None
    lines = [
        f"{row['name']} on {row['target']}, {row['chips']} chip(s), {row['devices']} device(s), {row['precision']}: "
        f"{estimated} (not measured), compiled in {row['compile_seconds']:.0f} s",
        f"  per device: floors {' and '.join(floors)}; {(row['bytes'] or math.nan) / 1e9:,.2f} GB moved"
        + (f", {row['flops'] / 1e9:,.0f} GFLOP" if row["flops"] else "")
        + f"; memory {row['argument_bytes'] / 1e9:,.3f} GB arguments, {row['temporary_bytes'] / 1e9:,.3f} GB temporary "
        f"of {row['memory_bytes'] / 1e9:,.0f} GB{'' if row['fits'] else ': DOES NOT FIT'}",
        f"  collectives {row['collectives'] or 'none'}" + (f"; at once: {chunks}" if chunks else ""),
    ]
    lines += [f"  {n / total:6.1%} of {cost}  {line}" for line, n in row["most_expensive"]]
    if row["kernels"]:
        calls = ", ".join(f"{n} x {name}" for name, n in row["library_calls"].items())
        lines.append(f"  library calls: {calls or 'none'}; kernels: {row['kernels']}")
    return "\n".join(lines)
