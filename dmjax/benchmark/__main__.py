"""How fast it is here: milliseconds per iteration beside the machine's ceilings and beside a peer.

    python -m dmjax.benchmark --case cifar10-ipc10 --case mnist-ipc1 --peer torch --json benchmark.json

    python -m dmjax.benchmark --case evaluate-cifar10-ipc50 --peer torch

    python -m dmjax.benchmark --case tiny_imagenet-ipc50 --plan --memory-gb 16

    python -m dmjax.benchmark --case cifar10-ipc10 --scaling 1 2 4 8

    python -m dmjax.benchmark --case cifar10-ipc10 --target v5e:1x1x1 --network.precision bfloat16

Data are random. Ours and the peer are timed in turn, in blocks; the median block counts, and the spread is shown. The
floor is the arithmetic of direct convolutions at the speed of a matrix product; Winograd's algorithm (CPU) needs less.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmjax import networks
from dmjax.benchmark import cases, peer, profile, programs, roofline, target
from dmjax.benchmark.cases import Case
from dmjax.common import backend, files, machine, signals
from dmjax.common.errors import UserError
from dmjax.config import BenchmarkConfig, EvaluationConfig
from dmjax.evaluation import protocols
from dmjax.methods.base import Chunks
from dmjax.settings import cli, fields
from dmjax.settings.check import check

_RECIPE = protocols.complete(EvaluationConfig())
_SLOW = 0.5  # seconds of an iteration from which a dispatch holds one only


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="nothing was written")


def _main(arguments: list[str]) -> None:
    prog, repeatable = "python -m dmjax.benchmark", ["case"]
    config = cli.parse(BenchmarkConfig(), arguments, prog, f"{__doc__}", repeatable=repeatable)
    check(config)
    config = dataclasses.replace(config, network=networks.resolve(config.network))
    if not config.scaling:  # which simulates devices
        backend.split_cpu()
    _check(config)
    chosen = [cases.parse(name) for name in config.case or ("cifar10-ipc10",)]
    if config.peer is not None:
        peer.find(config.peer)
    if config.json is not None:
        files.check_writable(config.json)
    if config.target is not None:
        report = _estimates(config.target, config, chosen)
    elif config.scaling or config.plan:
        report = _scaling(config, chosen) if config.scaling else _plan(config, chosen)
    else:
        report = _timing(config, chosen)
    if config.json is not None:
        files.write_json(config.json, report)


def _check(config: BenchmarkConfig) -> None:
    for name, most in (("blocks", 10_000), ("seconds", 86_400)):
        if getattr(config, name) > most:
            raise UserError(f"{name} must be at most {most}, not {getattr(config, name)}")
    if config.devices is not None and config.devices > jax.device_count():  # asked last: it starts the backend
        raise UserError(f"devices must be at most {jax.device_count()}, not {config.devices}")
    if config.profile is not None and config.profile.exists() and not config.profile.is_dir():
        raise UserError(f"--profile {config.profile} is a file; name a folder")
    if config.network.name != "ConvNet":
        raise UserError(f"floors and peers are known for ConvNets only, not for {config.network.name}")


def _timing(config: BenchmarkConfig, chosen: list[Case]) -> dict[str, Any]:
    config = dataclasses.replace(config, network=networks.settled(config.network))
    here = machine.describe()
    repeats = 2 * config.blocks
    ceilings = {
        "matmul_flops": roofline.matmul_flops(config.network.precision, repeats),
        "copy_bytes_per_second": roofline.copy_bytes(repeats),
    }
    print(
        f"{here['processor']} x {here['cpu_count']}, {here['backend']}: {', '.join(here['devices'])}; "
        f"jax {here['versions']['jax']}, Python {here['versions']['python']}\n"
        f"measured ceilings: matrix product {ceilings['matmul_flops'] / 1e9:,.0f} GFLOP/s "
        f"({config.network.precision}), copy {ceilings['copy_bytes_per_second'] / 1e9:,.1f} GB/s\n"
    )
    for case in chosen:
        programs.build_network(case, config)  # what cannot be built is said before anything is measured
    report = {"machine": {**here, **ceilings}, "precision": config.network.precision, "cases": []}
    for case in chosen:
        report["cases"].append(_time(case, config, ceilings))
        print(_describe(report["cases"][-1]), flush=True)
        if config.json is not None:
            files.write_json(config.json, report)  # what is measured stays, whatever comes next
    return report


def _time(case: Case, config: BenchmarkConfig, ceilings: dict[str, float]) -> dict[str, Any]:
    """Times one case, in turn with the peer."""
    batch = min(_RECIPE.batch_size, case.num_classes * case.ipc)
    network = programs.build_network(case, config)
    settings = cases.settings(case, config)
    flops, moved = cases.work(case, settings, network.depth, batch) or (math.nan, math.nan)
    # The ceilings of a CPU are those of all its cores, however many devices these are.
    several = case.kind == "condense" and jax.default_backend() != "cpu"
    devices = min(config.devices or 1_000_000, jax.device_count()) if several else 1
    compute, memory = flops / devices / ceilings["matmul_flops"], moved / devices / ceilings["copy_bytes_per_second"]
    floor = max(compute, memory)
    if case.kind == "condense":
        slow = floor > _SLOW or settings.method.inner_loop
        program = programs.condensing(case, config, config.chunk or (1 if slow else 10))
        iterations = 1
    else:
        program = programs.evaluating(case, config, _RECIPE)
        iterations = program.notes["steps_per_dispatch"]
    done, seconds, _ = program.run(iterations)  # the first one is not counted
    iterations = max(done, round(config.seconds / (seconds / done)))
    if case.kind == "evaluate":
        most = cases.steps_per_network(case, _RECIPE.epochs, batch) * program.notes["networks_at_once"]
        iterations = min(iterations, most)
    ours, theirs, hosts, about, theirs_at_once = [], [], [], None, 0
    with _peer(case, config, network.depth, batch) as other:
        if other is not None:
            about = other.about
            theirs_at_once = max(1, round(config.seconds / other.run(1)))
        for _ in range(config.blocks):
            signals.check()
            done, seconds, host = program.run(iterations)
            ours.append(1e3 * seconds / done)
            hosts.append(1e3 * (host or 0) / done)
            if other is not None:
                theirs.append(1e3 * other.run(theirs_at_once) / theirs_at_once)
    if config.profile is not None:
        _profile(config.profile / case.name, program, iterations)
    milliseconds = float(np.median(ours))
    row = {
        "name": case.name,
        "kind": case.kind,
        "unit": "training step" if case.kind == "evaluate" else "iteration",
        "ms_per_iteration": milliseconds,
        "ms_blocks": ours,
        "peer_ms_per_iteration": float(np.median(theirs)) if theirs else None,
        "peer_ms_blocks": theirs,
        "peer": about,
        "ratio": float(np.median(np.divide(theirs, ours))) if theirs else None,
        "floor_ms": 1e3 * floor,
        "floor_compute_ms": 1e3 * compute,
        "floor_memory_ms": 1e3 * memory,
        "formula_flops": flops,
        "achieved_flops": flops / milliseconds * 1e3,
        "host_ms_per_iteration": float(np.median(hosts)) if case.kind == "condense" else None,
        **program.notes,
    }
    if case.kind == "condense":
        row["achieved_xla_flops"] = row["xla_flops"] / milliseconds * 1e3 if row["xla_flops"] else None
        row["real_images_per_second"] = cases.real_images(case, settings) / milliseconds * 1e3
    else:
        steps = cases.steps_per_network(case, _RECIPE.epochs, batch)
        row["seconds_per_network"] = steps * milliseconds / 1e3 + row["test_seconds"]
        row["networks_per_minute"] = 60 / row["seconds_per_network"]
        if theirs:  # without its test, which is not timed
            row["peer_networks_per_minute"] = 6e4 / (steps * row["peer_ms_per_iteration"])
        row["full_recipe_was_run"] = done >= steps * row["networks_at_once"]
    unknown = [name for name, value in row.items() if isinstance(value, float) and math.isnan(value)]
    return row | dict.fromkeys(unknown)  # JSON has no NaN


@contextlib.contextmanager
def _peer(case: Case, config: BenchmarkConfig, depth: int, batch: int) -> Iterator[peer.Peer | None]:
    if config.peer is None:
        yield None
        return
    settings = {**case._asdict(), **dataclasses.asdict(config.network), "depth": depth, "batch_size": batch}
    method = cases.settings(case, config).method
    settings |= {
        "batch_real": getattr(method, "batch_real", None),
        "backend": jax.default_backend(),
        "method_settings": fields.flatten(method),
    }
    with peer.started(peer.find(config.peer), settings) as other:
        yield other


def _profile(folder: Path, program: programs.Program, iterations: int) -> None:
    with profile.traced(folder):
        program.run(iterations)
    print(f"profile of {iterations} iterations or steps; most of the time, by the names of the compiled program:")
    for name, milliseconds, calls in profile.largest(folder):
        print(f"  {milliseconds:10.1f} ms  {calls:6d} x  {name}")
    print(f"  all of it: {profile.newest(folder)}, to be opened at ui.perfetto.dev")


def _describe(row: dict[str, Any]) -> str:
    """One case for the screen."""
    spread = f"{min(row['ms_blocks']):,.2f} .. {max(row['ms_blocks']):,.2f}"
    lines = [
        f"{row['name']}: {row['ms_per_iteration']:,.2f} ms per {row['unit']} ({spread} over {len(row['ms_blocks'])} "
        f"blocks), compiled in {row['compile_seconds']:.1f} s",
    ]
    if row["floor_ms"] is not None:
        lines.append(
            f"  floor {row['floor_ms']:,.2f} ms (arithmetic {row['floor_compute_ms']:,.2f}, memory "
            f"{row['floor_memory_ms']:,.2f}): {row['ms_per_iteration'] / row['floor_ms']:.2f} x the floor, "
            f"{row['achieved_flops'] / 1e9:,.0f} GFLOP/s by the formula"
            + (f", {row['achieved_xla_flops'] / 1e9:,.0f} by XLA's count" if row.get("xla_flops") else "")
        )
    if row["kind"] == "condense":
        chunks = Chunks(**row["chunks"])
        lines.append(
            f"  {row['real_images_per_second']:,.0f} real images/s, {row['peak_bytes'] / 1e9:.2f} GB per device, "
            f"{row['devices']} device(s), host busy for {row['host_ms_per_iteration']:,.2f} ms, at once: {chunks}"
        )
    else:
        lines.append(
            f"  {row['networks_per_minute']:.2f} networks per minute ({row['seconds_per_network']:.1f} s each, "
            f"{_RECIPE.epochs} epochs and 10,000 test images"
            + (")" if row["full_recipe_was_run"] else "; extrapolated from the measured steps)")
        )
    if row["ratio"] is not None:
        peers, about = row["peer_ms_blocks"], ", ".join(f"{k} {v}" for k, v in row["peer"].items())
        lines.append(
            f"  peer {row['peer_ms_per_iteration']:,.2f} ms ({min(peers):,.2f} .. {max(peers):,.2f}; {about}): "
            f"{row['ratio']:.2f} x as fast"
        )
    return "\n".join(lines)


def _plan(config: BenchmarkConfig, chosen: list[Case]) -> dict[str, Any]:
    rows = [programs.plan(case, config) for case in chosen]
    for row in rows:
        chunks = Chunks(**row["chunks"])
        print(
            f"{row['name']}: {row['peak_bytes'] / 1e9:.2f} GB per device, {row['real_image_bytes'] / 1e9:.2f} GB of it "
            f"real images, {row['state_bytes'] / 1e9:.2f} GB the state, {row['temporary_bytes'] / 1e9:.2f} GB "
            f"temporaries; {row['devices']} device(s), {row['classes_per_device']} classes each; at once: {chunks}"
        )
    return {"machine": machine.describe(), "plans": rows}


def _estimates(name: str, config: BenchmarkConfig, chosen: list[Case]) -> dict[str, Any]:
    report: dict[str, Any] = {"machine": machine.describe(), "estimates": "of the compiler, not measured", "cases": []}
    with target.described(name) as chips:
        config = dataclasses.replace(config, network=networks.settled(config.network))
        for row in target.estimates(chosen, config, chips, _RECIPE):
            report["cases"].append(row)
            print(target.describe(row), flush=True)
            if config.json is not None:
                files.write_json(config.json, report)  # what is known stays, whatever comes next
            signals.check()
    print(f"\n{target.table(report['cases'])}")
    return report


def _scaling(config: BenchmarkConfig, chosen: list[Case]) -> dict[str, Any]:
    roofline.simulate(max(config.scaling))
    print("classes grow with the devices (weak scaling); one device's share, by the compiled program's analysis")
    rows = []
    for case in chosen:
        for n in config.scaling:
            signals.check()
            row = programs.share_cost(case._replace(num_classes=n * case.num_classes), config, n)
            rows.append({"name": case.name, **row})
            print(
                f"{case.name}: {n} devices, {row['classes']} classes: {row['flops_per_device'] / 1e9:,.1f} GFLOP, "
                f"{row['bytes_per_device'] / 1e9:,.2f} GB, collectives {row['collectives'] or 'none'}",
                flush=True,
            )
    return {"machine": machine.describe(), "scaling": rows}


if __name__ == "__main__":
    sys.exit(main())
