# ruff: noqa: E501
"""Estimates for described chips: the program text that they are read from, and what the compilers make of ours."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from dmjax import networks
from dmjax.benchmark import cases, hlo, target
from dmjax.common import backend
from dmjax.config import NetworkConfig
from dmjax.networks.layers import PRECISIONS

LOOP = """HloModule jit_f

FileNames
1 "/somewhere/dmjax/methods/base.py"
2 "/elsewhere/flax/linear.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=99 end_line=99 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%gathered (p0: u8[10,5000,3072], p1: s32[256]) -> u8[256,3072] {
  %p0 = u8[10,5000,3072]{2,1,0} parameter(0)
  %p1 = s32[256]{0} parameter(1)
  ROOT %gather.1 = u8[256,3072]{1,0} gather(%p0, %p1), offset_dims={1}
}

%condition (c: (s32[], u8[10,5000,3072], f32[8,6,6,4])) -> pred[] {
  %c = (s32[], u8[10,5000,3072]{2,1,0}, f32[8,6,6,4]{3,2,1,0}) parameter(0)
  %limit = s32[] constant(7)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%cheap (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %negate.1 = f32[8]{0} negate(%a), backend_config={"estimated_cycles":"1"}
}

%dear (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  ROOT %negate.2 = f32[8]{0} negate(%b), backend_config={"estimated_cycles":"50"}
}

%body (s: (s32[], u8[10,5000,3072], f32[8,6,6,4])) -> (s32[], u8[10,5000,3072], f32[8,6,6,4]) {
  %s = (s32[], u8[10,5000,3072]{2,1,0}, f32[8,6,6,4]{3,2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%s), index=0
  %data = u8[10,5000,3072]{2,1,0} get-tuple-element(%s), index=1
  %x = f32[8,6,6,4]{3,2,1,0} get-tuple-element(%s), index=2
  %indices = s32[256]{0} iota(), iota_dimension=0
  %taken = u8[256,3072]{1,0} fusion(%data, %indices), kind=kLoop, calls=%gathered, backend_config={"estimated_cycles":"10"}
  %kernel = f32[3,3,4,5]{3,2,1,0} constant({...})
  %conv = f32[8,6,6,5]{3,2,1,0:S(1)} convolution(%x, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(f)/conv" stack_frame_id=2}, backend_config={"estimated_cycles":"100"}
  %v = f32[8]{0} constant({...})
  %either = f32[8]{0} conditional(%j, %v, %v), branch_computations={%cheap, %dear}
  ROOT %out = (s32[], u8[10,5000,3072]{2,1,0}, f32[8,6,6,4]{3,2,1,0}) tuple(%j, %data, %x)
}

ENTRY %main (d: u8[10,5000,3072], y: f32[8,6,6,4]) -> f32[] {
  %d = u8[10,5000,3072]{2,1,0} parameter(0)
  %y = f32[8,6,6,4]{3,2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], u8[10,5000,3072]{2,1,0}, f32[8,6,6,4]{3,2,1,0}) tuple(%zero, %d, %y)
  %loop = (s32[], u8[10,5000,3072]{2,1,0}, f32[8,6,6,4]{3,2,1,0}) while(%start), condition=%condition, body=%body
  %one = f32[] constant(1)
  ROOT %sum = f32[] all-reduce(%one), replica_groups={}, to_apply=%cheap
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_a_gather_by_its_rows():
    program = hlo.Program(LOOP)
    assert program.cycles() == 7 * (10 + 100 + 50)  # of the conditional the branch that costs more
    assert program.flops() == 7 * 2 * (8 * 6 * 6 * 5) * (3 * 3 * 4)
    assert program.collectives() == {"all-reduce": 1}
    rows = 256 * 3072
    taken = 2 * rows + 256 * 4
    convolution = 8 * 6 * 6 * 4 * 4 + 3 * 3 * 4 * 5 * 4  # whose result stays on the chip
    negated, summed = 2 * 8 * 4, 2 * 4
    assert program.traffic() == 7 * (taken + convolution + negated) + summed
    cost = {i.name: float(i.cycles) for i, _ in program.executed}
    assert dict(program.by_line(cost))["dmjax/methods/base.py:12"] == 7 * 100


def test_what_touches_all_data_is_found():
    whole = LOOP.replace("gather(%p0, %p1), offset_dims={1}", "copy(%p0)")
    sizes = [
        max([0, *read]) for read, _ in map(hlo.Program(whole).operands, (i for i, _ in hlo.Program(whole).executed))
    ]
    assert max(sizes) == 10 * 5000 * 3072
    touched = hlo.Program(LOOP)
    assert max(max([0, *read]) for read, _ in map(touched.operands, (i for i, _ in touched.executed))) == 256 * 3072


def test_precision_by_default_is_what_the_devices_are_made_for():
    found = {}
    for platform in ("cpu", "gpu", "tpu"):
        with backend.described(platform):
            found[platform] = networks.settled(NetworkConfig()).precision
    assert found == {"cpu": "float32", "gpu": "tf32", "tpu": "bfloat16"}
    assert networks.settled(NetworkConfig(precision="float32")).precision == "float32"


def estimates(tmp_path, *arguments):
    """What the command says of described chips, in a process of its own: a compiler that aborts takes no test along."""
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # it knows flags of its own
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dmjax.benchmark", *arguments, "--json", str(tmp_path / "estimates.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "estimates.json").read_text())["cases"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler of TPUs, is not installed")
@pytest.mark.parametrize(
    ("case", "chunks"),
    [
        ("cifar10-ipc1", ()),
        ("mnist-ipc1", ()),  # whose rows are no multiple of what a TPU computes at once
        pytest.param("cifar10-ipc1", ("--class-chunk", "10"), marks=pytest.mark.slow),
        pytest.param("cifar10-ipc1", ("--class-chunk", "3", "--image-chunk", "64"), marks=pytest.mark.slow),
    ],
)
def test_on_a_tpu_an_iteration_touches_only_the_batch(tmp_path, case, chunks):
    """No instruction reads or writes as much as the data set is, however classes are computed."""
    flags = ("--network.width", "16", "--batch-real", "128", *chunks)
    [row] = estimates(tmp_path, "--case", case, "--target", "v5e:1x1x1", *flags)
    parsed = cases.parse(case)
    images = parsed.num_classes * parsed.images_per_class
    assert 0 < row["largest_read"] < images * math.prod(parsed.image_shape) / 4
    assert row["estimated_cycles"] > 1e5
    assert row["precision"] == "bfloat16"
    assert row["collectives"] == {}
    assert row["fits"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler of TPUs, is not installed")
def test_sixteen_chips_talk_of_nothing_but_the_loss(tmp_path):
    [row] = estimates(tmp_path, "--case", "cifar100-ipc1", "--target", "v5e:4x4", "--network.width", "8")
    assert (row["chips"], row["collectives"]) == (16, {"all-reduce": 1})
    assert row["argument_bytes"] < 1.1 * 100 * 500 * 3072 / 16 + 1e6
    assert row["largest_read"] < 100 * 500 * 3072 / 16 / 4


def test_unknown_chips_are_one_line(run_command):
    for name, message in (("v7", "give v4:1x1x1"), ("v5e", "or a slice such as"), ("h100:2", "or h100")):
        done = run_command("dmjax.benchmark", "--case", "tiny-ipc1", "--target", name)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_every_chip_has_a_floor():
    for chip in target.CHIPS.values():
        assert set(chip.flops) == set(PRECISIONS)
        assert chip.flops["bfloat16"] > chip.flops["tf32"] > chip.flops["float32"] > chip.bandwidth > chip.clock
