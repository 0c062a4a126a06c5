"""The benchmark: what it counts, the peer that it compares with, and its report."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from conftest import ROOT

from dmjax import DM, networks
from dmjax.benchmark import cases, roofline
from dmjax.benchmark.__main__ import main
from dmjax.common.errors import UserError
from dmjax.config import AUGMENTATIONS, AugmentConfig, BenchmarkConfig, NetworkConfig
from dmjax.data import augment
from dmjax.methods import gradient
from dmjax.methods.cloud import Cloud

CIFAR10 = cases.parse("cifar10-ipc50")
NETWORK = networks.resolve(NetworkConfig())


def settings_of(case, network=NETWORK):
    return cases.settings(case, BenchmarkConfig(network=network))


def test_work_is_that_of_the_literature():
    assert cases.forward_flops(NETWORK, 3, (32, 32, 3)) == pytest.approx(101.5e6, rel=1e-3)
    assert 2 * cases.activations(NETWORK, 3, (32, 32, 3)) == pytest.approx(0.344e6, rel=1e-3)
    flops, moved = cases.work(CIFAR10, settings_of(CIFAR10), 3, 256)
    assert flops == pytest.approx(412e9, rel=2e-3)
    ten = cases.parse("cifar10-ipc10")
    assert cases.work(ten, settings_of(ten), 3, 256)[0] == pytest.approx(290e9, rel=2e-3)
    half = dataclasses.replace(NETWORK, precision="bfloat16")
    assert cases.work(CIFAR10, settings_of(CIFAR10, half), 3, 256)[1] == moved / 2
    dsa = cases.parse(
        "dsa-cifar10-ipc1"
    )  # one outer step: a gradient of 256 real images, and of that of a synthetic one
    assert cases.work(dsa, settings_of(dsa), 3, 256)[0] == pytest.approx(10 * (3 * 256 + 9) * 101.5e6, rel=1e-3)


def test_cases_have_names_and_near_misses():
    assert (CIFAR10.kind, CIFAR10.ipc, CIFAR10.num_classes) == ("condense", 50, 10)
    assert cases.parse("evaluate-mnist-ipc1").kind == "evaluate"
    assert (cases.parse("dsa-mnist-ipc10").kind, cases.parse("dsa-mnist-ipc10").method) == ("condense", "dsa")
    assert cases.steps_per_network(CIFAR10, 1000, 256) == 2000
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        cases.parse("cifar-ipc10")
    with pytest.raises(UserError, match="not of the form"):
        cases.parse("cifar10")


@pytest.fixture
def torch_peer(torch):
    path = ROOT / "experiments" / "benchmark" / "torch_peer.py"
    spec = importlib.util.spec_from_file_location("torch_peer", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    return peer


def twin_of(torch, peer, params, shape):
    """The peer's network with the same parameters; its features are flattened channel by channel."""
    twin = peer.ConvNet(shape[2], shape[0], shape[1], 10, features=8, depth=3)
    for i, layer in enumerate(layer for layer in twin.features if isinstance(layer, torch.nn.Conv2d)):
        parameters = params[f"conv{i}"]["conv"]
        layer.weight.data = torch.tensor(np.asarray(parameters["kernel"])).permute(3, 2, 0, 1)
        layer.bias.data = torch.tensor(np.asarray(parameters["bias"]))
    kernel, bias = (torch.tensor(np.asarray(params["classifier"]["dense"][name])) for name in ("kernel", "bias"))
    side = int((len(kernel) / 8) ** 0.5)
    twin.classifier.weight.data = kernel.reshape(side, side, 8, 10).permute(3, 2, 0, 1).reshape(10, -1)
    twin.classifier.bias.data = bias
    return twin


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1)])
def test_the_peer_matches_the_same_gradients(torch, torch_peer, rng, shape):
    network = networks.create(NetworkConfig(width=8, depth=3), 10, shape)
    variables = jax.jit(lambda: networks.init(network, jax.random.key(0), shape))()
    real, synthetic = (rng.normal(size=(n, *shape)).astype(np.float32) for n in (5, 2))
    of = jax.jit(lambda x: gradient.class_gradient(network, variables, x, np.ones(len(x), np.float32), np.int32(3)))
    ours = gradient.distance(of(synthetic), of(real), "ours")
    images = (torch.tensor(x).permute(0, 3, 1, 2) for x in (real, synthetic))
    theirs = torch_peer.gradient_distance(twin_of(torch, torch_peer, variables["params"], shape), *images, 3)
    np.testing.assert_allclose(float(ours), theirs.item(), rtol=1e-4)


@pytest.mark.parametrize("group", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1)])
def test_the_peer_computes_the_same_loss(torch, torch_peer, rng, group, shape):
    """The same images, parameters and draws through our objective and through the peer's."""
    network = networks.create(NetworkConfig(width=8, depth=3), 10, shape)
    variables = jax.jit(lambda: networks.init(network, jax.random.key(0), shape))()
    real, synthetic = (rng.normal(size=(n, *shape)).astype(np.float32) for n in (5, 2))
    u = rng.uniform(size=3).astype(np.float32)
    index = np.int32(AUGMENTATIONS.index(group))
    siamese = augment.parameters(index, u, AugmentConfig(), shape)
    clouds = []
    for images in (real, synthetic):
        ones = np.ones(len(images), np.float32)
        clouds.append(Cloud(networks.embed(network, variables, augment.apply(siamese, images), ones), ones))
    ours = DM().distance(jax.random.key(0), *clouds)
    twin = twin_of(torch, torch_peer, variables["params"], shape)
    images = (torch.tensor(x).permute(0, 3, 1, 2) for x in (real, synthetic))
    theirs = torch_peer.class_loss([twin.embed] * 2, *images, group, torch.tensor(u)[None])
    np.testing.assert_allclose(float(ours), theirs.item(), rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_report_holds_what_is_promised(run_command, tmp_path, torch, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # its compiler takes half a minute
    path = tmp_path / "report.json"
    options = ["--network.width", "4", "--batch-real", "8", "--blocks", "2", "--seconds", "0.05"]
    done = run_command(
        *("dmjax.benchmark", "--case", "tiny-ipc1", "--case", "evaluate-tiny-ipc1", "--peer", "torch"),
        *options,
        *("--json", path),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["machine"]["matmul_flops"] > 0
    condense, evaluate = report["cases"]
    for row in (condense, evaluate):
        assert row["ms_per_iteration"] > 0
        assert row["ratio"] > 0
        assert row["floor_ms"] > 0
        assert row["compile_seconds"] > 0
        assert isinstance(row["peer"]["compiled"], bool)  # where that is faster
    assert condense["peak_bytes"] > 10 * 146 * 64  # the real images at least
    assert evaluate["networks_per_minute"] > 0
    assert "floor" in done.stdout


def test_a_peer_takes_as_many_real_images_as_the_method(monkeypatch, tmp_path):
    monkeypatch.setattr(roofline, "matmul_flops", lambda *_: 1e11)  # these two are measured in the test above
    monkeypatch.setattr(roofline, "copy_bytes", lambda *_: 1e10)
    peer, path = tmp_path / "peer.py", tmp_path / "report.json"
    peer.write_text(
        "import json, sys\n"
        "print(json.dumps({'batch_real': json.loads(sys.argv[1])['batch_real']}), flush=True)\n"
        "for line in sys.stdin: print(0.1, flush=True)\n"
    )
    flags = ["--case", "tiny-ipc1", "--network.width", "4", "--blocks", "1", "--seconds", "0.05", "--peer", str(peer)]
    assert main([*flags, "--json", str(path)]) == 0
    [row] = json.loads(path.read_text())["cases"]
    assert row["peer"]["batch_real"] == 256


@pytest.mark.slow
def test_weak_scaling_gives_each_device_the_same(run_command, tmp_path):
    for norm, collectives in (("instance", 1), ("batch", 2)):
        path = tmp_path / f"{norm}.json"
        done = run_command(
            *("dmjax.benchmark", "--case", "tiny-ipc1", "--scaling", "1", "2", "--network.width", "4"),
            *("--batch-real", "4", "--network.norm", norm, "--json", path),
        )
        assert done.returncode == 0, done.stderr
        one, two = json.loads(path.read_text())["scaling"]
        assert two["classes"] == 2 * one["classes"]
        assert two["flops_per_device"] == pytest.approx(one["flops_per_device"], rel=0.02)
        assert (two["collectives"].get("all-reduce", 0) > 1) == (collectives > 1)  # one sums the losses


def test_bad_benchmarks_are_one_line(capsys):
    for arguments, message in (
        (["--case", "cifar11-ipc1"], "did you mean"),
        (["--peer", "nobody.py"], "no peer"),
        (["--blocks", "0"], "blocks must be at least 1"),
        (["--devices", "100"], "devices must be at most 4"),
        (["--seconds", "inf"], "seconds must be finite"),
        (["--augment.strategy", "foo"], "augment.strategy must be"),
        (["--profile", "README.md"], "README.md is a file"),
    ):
        assert main(arguments) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
