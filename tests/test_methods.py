"""Methods as values: their flags, a method of one's own, and who may import whom."""

import ast
import dataclasses
import importlib
import json
import linecache
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

import dmjax
from dmjax import DM, compare, condense, methods
from dmjax.common.errors import UserError
from dmjax.config import CheckpointConfig, Config, EvaluationConfig, NetworkConfig
from dmjax.methods.base import Condensed, Method
from dmjax.methods.cloud import Cloud
from dmjax.run import papers
from dmjax.run.devices import ClassSharding
from dmjax.settings import cli, experiment, fields

OWN = "experiments.own_method:KernelMatching"
TINY = ["--config", str(ROOT / "experiments" / "tiny.py")]
SMALL = [
    *("--network.width", "4", "--network.depth", "1", "--iterations", "4", "--batch-real", "8", "--images-every", "0"),
    *("--evaluation.networks", "1", "--evaluation.epochs", "1", "--evaluation.random-real", "false"),
    *("--evaluation.whole-dataset", "false", "--progress", "false"),
]
CONFIG = Config(
    network=NetworkConfig(width=4, depth=1),
    evaluation=EvaluationConfig(networks=1, epochs=1),
    checkpoint=CheckpointConfig(every=2),
    ipc=1,
    images_every=0,
    progress=False,
)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def error_of(capsys, main, *arguments):
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


def flags_of(capsys, *arguments):
    """The flags that --help lists, with the defaults that it shows."""
    with pytest.raises(SystemExit):
        condense.main([*TINY, *arguments, "--help"])
    pieces = re.split(r"(?=--[a-z]+[a-z.-]* )", " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split()))
    found = (re.match(r"(--[a-z.-]+) .*\(default: (.*?)\)", piece) for piece in pieces)
    return dict(match.groups() for match in found if match)


def test_help_lists_the_settings_of_the_method_with_the_values_that_will_be_used(capsys):
    dsa, dm, herding = (flags_of(capsys, "--method", name) for name in ("dsa", "dm", "herding"))
    assert dsa["--gradient.outer"] == "1"  # by images per class: tiny has one
    assert dsa["--optimizer.learning-rate"] == "0.1"
    assert dm["--optimizer.learning-rate"] == "1.0"
    assert "--gradient.outer" not in dm
    assert "--match.weight" in dm
    assert "--match.weight" not in dsa
    assert not {"--iterations", "--optimizer.name", "--init"} & set(herding)
    assert dm["--network.activation"] == "relu"
    ten = flags_of(capsys, "--method", "dsa", "--ipc", "10", "--network.name", "VGG11")
    assert (ten["--gradient.outer"], ten["--gradient.inner"]) == ("10", "50")
    assert flags_of(capsys, "--network.name", "VGG11")["--optimizer.learning-rate"] == "0.002"
    assert flags_of(capsys, "--method", OWN)["--bandwidth"] == "1.0"


def test_a_flag_of_another_method_is_refused_and_says_whose_it_is(capsys):
    error = error_of(capsys, condense.main, *TINY, "--gradient.outer", 3)
    assert "--gradient.outer is a setting of dc and dsa, not of dm" in error
    error = error_of(capsys, condense.main, *TINY, "--method", "herding", "--iterations", 3)
    assert all(f" {name}" in error for name in ("dm,", "dc,", "kip,", "ld,", "and dd, not of herding"))
    assert "a setting of kip, not of dsa" in error_of(
        capsys, condense.main, *TINY, "--method", "dsa", "--kernel.name", "rbf"
    )


def test_what_an_experiment_sets_is_carried_over_to_another_method():
    given, default = experiment.parse(Config, [*TINY, "--method", "dc", "--iterations", "5"], "", "")
    assert (given.method.batch_real, given.method.iterations, given.method.init) == (64, 5, "noise")
    assert default.method.iterations == 500
    assert experiment.resolve(given, default).method.optimizer.learning_rate == 0.1


def test_flags_without_content_and_flags_given_twice_are_refused(capsys):
    for arguments, message in (
        (["--config", ""], "--config is given an empty value"),
        ([*TINY, "--workdir", ""], "--workdir is given an empty value"),
        ([*TINY, "--workdir="], "--workdir is given an empty value"),
        ([*TINY, "--ipc", 1, "--ipc", 2], "--ipc is given twice"),
        ([*TINY, "--batch-real", 1, "--batch_real", 2], "--batch-real is given twice"),
        ([*TINY, "--chunk", "many"], "'many' is not a whole number"),
        ([*TINY, "--network.norm", "foo"], "'foo' is not one of instance, batch"),
        ([*TINY, "--class-chunk", 0], "class_chunk must be at least 1"),
        ([*TINY, "--data.path", "README.md"], "--data.path is for the source"),
    ):
        error = error_of(capsys, condense.main, *arguments)
        assert message in error
        assert "NoneType" not in error


def test_the_shipped_method_is_short_and_computes_what_it_says(rng):
    """Against NumPy, on features that are the pixels; fillers of a batch do not count."""
    path = ROOT / "experiments" / "own_method.py"
    body = path.read_text().split('"""', 2)[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 40
    own = methods.find(OWN)(bandwidth=0.5)
    real, synthetic = (rng.normal(size=(n, 2, 2, 1)).astype(np.float32) for n in (6, 3))
    weights = np.float32([1, 1, 1, 1, 1, 0])

    def loss(x, real=real, weights=weights):
        clouds = [
            Cloud(images.reshape(len(images), -1), of) for images, of in ((real, weights), (x, np.ones(3, np.float32)))
        ]
        return own.distance(jax.random.key(0), *clouds)

    value, gradient = jax.value_and_grad(loss)(synthetic)
    r, s = (np.float64(x).reshape(len(x), -1) for x in (real[:5], synthetic))
    squares = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1)  # noqa: E731
    width = 0.5**2 * np.median(squares(r, r)[~np.eye(5, dtype=bool)])
    kernel = lambda a, b: np.exp(-squares(a, b) / width)  # noqa: E731
    expected = kernel(r, r).mean() + kernel(s, s).mean() - 2 * kernel(r, s).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    step = 1e-6
    moved = s.copy()
    moved[1, 2] += step
    slope = (kernel(moved, moved).mean() - 2 * kernel(r, moved).mean()) - (
        kernel(s, s).mean() - 2 * kernel(r, s).mean()
    )
    np.testing.assert_allclose(np.asarray(gradient).reshape(3, -1)[1, 2], slope / step, rtol=1e-3)
    assert abs(float(loss(real[:3], real[:3], np.ones(3, np.float32)))) < 1e-5


def own_config(**changes):
    own = methods.find(OWN)
    return dataclasses.replace(CONFIG, method=own(iterations=4, batch_real=8, bandwidth=2.0), **changes)


@pytest.mark.parametrize("devices", [2, 4])
def test_an_own_method_on_several_devices(tmp_path, monkeypatch, devices):
    alone = condense.condense(own_config())
    monkeypatch.setattr(
        "dmjax.run.program.ClassSharding", lambda classes, _: ClassSharding(classes, jax.local_devices()[:devices])
    )
    assert jax.device_count() == 4
    np.testing.assert_allclose(condense.condense(own_config()).images, alone.images, rtol=1e-5, atol=1e-5)


def test_an_own_method_with_several_seeds_and_after_a_kill(tmp_path):
    whole = condense.condense_runs(own_config(runs=2, workdir=tmp_path / "whole"))
    again = own_config(runs=2, workdir=tmp_path / "killed")
    condense.condense_runs(dataclasses.replace(again))
    for seed in (0, 1):  # as a kill after the second iteration leaves them
        (tmp_path / "killed" / f"seed_{seed}" / "synthetic.npz").unlink()
        checkpoint = tmp_path / "killed" / f"seed_{seed}" / "checkpoints" / "4"
        subprocess.run(["rm", "-r", checkpoint], check=True)
    for ours, theirs in zip(condense.condense_runs(again), whole, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
    stored = json.loads((tmp_path / "killed" / "seed_0" / "config.json").read_text())["config"]["method"]
    assert (stored["name"], stored["bandwidth"]) == (OWN, 2.0)
    method = dataclasses.replace(again.method, bandwidth=3.0)
    with pytest.raises(UserError, match=r"belongs to another configuration \(bandwidth: 2\.0 -> 3\.0\)"):
        condense.condense_runs(dataclasses.replace(again, method=method))


def test_an_own_method_beside_the_built_in_ones(tmp_path):
    flags = [*TINY, *SMALL, "--workdir", str(tmp_path), "--methods", "random", OWN, "--ipc", "1", "--runs", "1"]
    assert compare.main([*flags, "--bandwidth", "2", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["random", OWN]
    assert {"iterations 4", "bandwidth 2.0"} <= {s.replace("bandwidth 2", "bandwidth 2.0") for s in rows[1]["settings"]}
    assert papers.published(methods.create(OWN), "mnist", 1) is None  # those of dm are not its own
    assert rows[1]["improvement_over_random"] == pytest.approx(rows[1]["mean"] - rows[0]["mean"])


BROKEN = """import dataclasses
import dmjax

@dataclasses.dataclass(frozen=True)
class Step(dmjax.DM):
    def distance(self, key, real, synthetic):
        return real.no_such_thing

@dataclasses.dataclass(frozen=True)
class Start(dmjax.DM):
    def start(self, problem, seed):
        return 1 / 0

class Plain(dmjax.DM):
    gain: float = 1.0

@dataclasses.dataclass(frozen=True)
class Open(dmjax.DM):
    gain: float = dataclasses.field(kw_only=True)

class Other:
    pass

@dataclasses.dataclass(frozen=True)
class Unsummed(dmjax.DM):
    def distance(self, key, real, synthetic):
        return real.weights @ real.features - synthetic.weights @ synthetic.features

@dataclasses.dataclass(frozen=True)
class NoLosses(dmjax.DM):
    def step(self, problem, key, state, data, constants):
        return state

@dataclasses.dataclass(frozen=True)
class OneLoss(dmjax.DM):
    def step(self, problem, key, state, data, constants):
        return state, state.images.sum()

@dataclasses.dataclass(frozen=True)
class Bare(dmjax.DM):
    def finish(self, problem, state):
        return super().finish(problem, state).images

@dataclasses.dataclass(frozen=True)
class Part(dmjax.DM):
    def finish(self, problem, state):
        made = super().finish(problem, state)
        return made._replace(images=made.images[:3])
"""


def test_errors_of_an_own_method_are_one_line_with_its_place(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_methods.py").write_text(BROKEN)
    (tmp_path / "no_python.py").write_text("def (:\n")
    (tmp_path / "raises.py").write_text("x = 1\nraise ValueError('a\\nb')\n")
    for name, message in (
        ("broken_methods:Step", r"does not run: AttributeError: .*no_such_thing.*broken_methods\.py:7\)"),
        ("broken_methods:Start", r"does not run: ZeroDivisionError: division by zero \(.*broken_methods\.py:12\)"),
        ("broken_methods:Plain", r"needs @dataclasses\.dataclass\(frozen=True\) above its class"),
        ("broken_methods:Open", r"does not run: TypeError: .*gain"),
        ("broken_methods:Other", "is no class that inherits from dmjax.Method"),
        ("broken_methods:Unsummed", r"distance must return a scalar for each class, not an array \[\d+\]"),
        (
            "broken_methods:NoLosses",
            r"step must return the state and the losses \[3\] of the classes that a device has, not MatchState",
        ),
        (
            "broken_methods:OneLoss",
            r"step must return the state and the losses \[3\] of the classes that a device has, not losses \[\]",
        ),
        ("broken_methods:Bare", r"finish must return a dmjax.methods.Condensed, not \w*[aA]rray"),
        ("broken_methods:Part", r"finish must return images \[10, images per class, 8, 8, 1\], not \[3, 1, 8, 8, 1\]"),
        ("broken_methods:None", "broken_methods has no 'None'"),
        ("no_python:X", r"cannot be imported: SyntaxError: .*no_python\.py:1\)"),
        ("raises:X", r"cannot be imported: ValueError: a \(.*raises\.py:2\)"),
        ("nowhere:X", "cannot be imported: No module named 'nowhere'; start the command in the folder"),
        ("dmm", "unknown method 'dmm', which is no module:Class either; did you mean 'dm'"),
    ):
        workdir = tmp_path / name.replace(":", "_")
        error = error_of(capsys, condense.main, *TINY, *SMALL[:4], "--method", name, "--workdir", workdir)
        assert re.search(message, error), error
        assert not (workdir / "synthetic.npz").exists()


CODE = """
import dataclasses
import dmjax

@dataclasses.dataclass(frozen=True)
class Own(dmjax.DM):
    gain: float = 1.0

    def distance(self, key, real, synthetic):
        return self.gain * ((real.weights @ real.features - synthetic.weights @ synthetic.features) ** 2).sum()
"""


def test_a_run_does_not_go_on_with_changed_code(tmp_path, monkeypatch):
    """Comments are no code, and what an older version has written says nothing about it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its date would not tell two files of one second apart

    def condensed(code):
        (tmp_path / "changing.py").write_text(code)
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        method = methods.find("changing:Own")(iterations=2, batch_real=8)
        return dmjax.condense(dataclasses.replace(CONFIG, method=method, workdir=tmp_path / "run"))

    first = condensed(CODE)
    assert condensed(CODE.replace("    def", "    # said twice\n\n    def")).digest() == first.digest()
    with pytest.raises(UserError, match=r"\(the code of changing:Own was changed\); remove it"):
        condensed(CODE.replace("** 2", "** 4"))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(stored.pop("method_code")) == ["changing:Own"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    assert condensed(CODE.replace("** 2", "** 4")).digest() == first.digest()


@dataclasses.dataclass(frozen=True)
class Copies(Method):
    """The first real images of each class, with soft labels, of which each unpacks into four."""

    softness: float = 0.1

    def start(self, problem, seed):
        return {"images": problem.dataset.images[:, : problem.config.ipc], "seed": np.int32(seed)}

    def finish(self, problem, state):
        classes, ipc = state["images"].shape[:2]
        labels = np.eye(classes, dtype=np.float32) * (1 - self.softness) + self.softness / classes
        return Condensed(state["images"], np.repeat(labels[:, None], ipc, axis=1), factor=2)


def test_a_method_of_another_kind_needs_three_functions_at_most(tmp_path):
    """No iterations, soft labels, a factor: handed over as an object."""
    synthetic = dmjax.condense(dataclasses.replace(CONFIG, method=Copies(0.2), ipc=2, workdir=tmp_path))
    assert synthetic.factor == 2
    assert synthetic.labels.shape == (20, 10)
    np.testing.assert_allclose(synthetic.labels[3], np.eye(10)[1] * 0.8 + 0.02, rtol=1e-6)
    loaded = dmjax.SyntheticSet.load(tmp_path / "synthetic.npz")
    np.testing.assert_array_equal(loaded.labels, synthetic.labels)
    accuracy = dmjax.evaluate(tmp_path / "synthetic.npz", progress=False)
    assert len(accuracy.values) == 1


def test_rooms_import_downwards_only():
    """The order of the rooms; a module may import from its own room and from those before it."""
    floors = ["common", "config", "data", "networks", "evaluation", "methods", "settings", "run"]
    package = ROOT / "dmjax"
    entries = [p for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")]
    assert len(entries) <= 19, sorted(p.name for p in entries)
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room not in floors:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("dmjax"):
                continue
            parts = node.module.split(".")[1:]
            for target in parts[:1] or [alias.name for alias in node.names]:
                assert target in floors, f"{path} imports {target}"
                assert floors.index(target) <= floors.index(room), f"{path} imports {target}"


def test_no_other_room_knows_a_method_by_name():
    names = "|".join(methods.built_in())
    for path in (ROOT / "dmjax").rglob("*.py"):
        if "methods" not in path.parts:
            text = re.sub(r"ProtocolName = .*", "", path.read_text())  # protocols are named after methods
            text = text.replace('element("dd"', "")  # a tag of HTML
            found = [] if path.name == "protocols.py" else re.findall(rf'"(?:{names})"', text)
            assert found == (['"dm"'] if path.name == "config.py" else []), path  # the default of --method


def test_every_method_says_what_it_is():
    for name, cls in methods.built_in().items():
        method = cls()
        assert cls.__doc__
        assert methods.identifier(method) == name
        assert methods.field_names(cls) == list(fields.flatten(method))
        assert fields.config_from_dict(fields.to_dict(Config(method=method))).method == method
        for figures in method.published.values():
            assert len(figures) == 3
        resolved = experiment.resolve(Config(method=method))
        assert experiment.resolve(resolved) == resolved
        left_open = {field for field, value in fields.flatten(resolved.method).items() if value is None}
        queued = fields.flatten(resolved.method).get("match.networks") == "queue"
        # None means something in these: no bounds, all images, what suits them, the augmentation of the experiment, and
        # no queue.
        assert left_open <= {
            *("batch_synthetic", "factor", *([] if queued else ["queue.every"])),
            *(f"match.{f}" for f in ("accuracy", "layers", "strategy", "composite")),
        }


def test_arguments_are_split_by_the_flags_they_belong_to():
    arguments = ["--a", "1", "2", "--b-c=3", "--d", "--a.e", "-1"]
    assert cli.split(arguments, {"a", "b_c"}) == (["--a", "1", "2", "--b-c=3"], ["--d", "--a.e", "-1"])
    assert cli.values_of(arguments, "a") == ["1", "2"]
    assert cli.take(["--x", "1", "--y=2"], "--y") == ("2", ["--x", "1"])
    with pytest.raises(UserError, match="--x takes one value"):
        cli.take(["--x", "1", "2"], "--x")


def test_a_method_is_found_by_its_file_alone():
    code = "import sys; from dmjax import methods; print(*methods.built_in())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert set(out.split()) >= {"dm", "dc", "dsa", "random", "herding", "kcenter", "forgetting", "whole"}
    assert isinstance(methods.create("dm"), DM)
