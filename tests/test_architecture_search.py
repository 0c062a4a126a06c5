"""Architecture search: the paper's grid, rank correlations by hand, and a search that is kept cell by cell."""

import importlib
import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dmjax import networks
from dmjax.common.errors import UserError
from dmjax.config import DataConfig, NetworkConfig
from dmjax.data import Dataset, load, sampling
from dmjax.evaluation import proxy, ranking, training

sys.path.insert(0, str(ROOT))
search = importlib.import_module("experiments.architecture_search")
sys.path.pop(0)

SMALL = (
    *(
        "--config",
        str(ROOT / "experiments" / "tiny.py"),
        "--ipc",
        "3",
        "--methods",
        "random",
        "dm",
        "--progress",
        "false",
    ),
    *("--iterations", "4", "--batch-real", "8", "--chunk", "2", "--images-every", "0", "--checkpoint.every", "2"),
    *("--network.width", "4", "--network.depth", "1"),
    *("--widths", "2", "4", "--activations", "relu", "--norms", "none", "instance", "--poolings", "avg"),
    *("--evaluation.networks", "2", "--evaluation.epochs", "3", "--evaluation.whole-epochs", "3"),
)
ONE_DEPTH = ("--depths", "1")


def flags_of(*arguments):
    """The small flags, those aside that are given."""
    given, kept, wanted = [str(a) for a in arguments], [], True
    for word in (*SMALL, *ONE_DEPTH):
        wanted = word not in given if word.startswith("--") else wanted
        kept += [word] if wanted else []
    return [*kept, *given]


def run(folder, *arguments):
    return search.main(flags_of("--workdir", folder, *arguments))


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def rows_of(folder):
    return {row["proxy"]: row for row in results_of(folder)["rows"]}


def without_seconds(value):
    """JSON values without what a clock has measured."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if "seconds" not in k and k not in ("making", "about")}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def test_the_papers_space_is_720_networks_with_names_of_their_own():
    every = search.grid(search.ArchitectureSearch())
    names = {networks.short_name(config) for config in every}
    assert len(every) == len(names) == 720
    for config in every:
        assert networks.resolve(NetworkConfig(networks.short_name(config), depth=config.depth)) == config


def test_networks_that_cannot_be_are_left_out_and_a_subset_is_part_of_a_larger_one():
    images = np.zeros((12, 8, 8, 1), np.uint8)
    dataset = Dataset.from_arrays(images, np.arange(12) % 3, images[:3], np.arange(3))
    varied = search.ArchitectureSearch()
    chosen, impossible = search.choose(varied, dataset)
    assert (len(chosen), impossible) == (600, 120)  # 8x8, with its border 12x12, is halved three times at most
    assert not any(config.depth == 4 and config.pooling != "none" for config in chosen.values())
    few, more = (search.choose(search.ArchitectureSearch(subset=n), dataset)[0] for n in (20, 30))
    assert list(more)[:20] == list(few)
    assert len(more) == 30
    assert set(more) <= set(chosen)
    assert search.choose(search.ArchitectureSearch(subset=20, seed=1), dataset)[0] != few


def test_spearman_with_ties_by_hand():
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: sums of products 4.5, 4.5 and 5
    assert ranking.spearman(np.array([1, 2, 2, 3]), np.array([10, 30, 20, 40])) == pytest.approx(4.5 / 22.5**0.5)
    assert ranking.spearman(np.array([1, 2, 3]), np.array([9, 5, 1])) == -1


def test_spearman_is_that_of_scipy_and_exactly_one_for_equal_rankings(rng):
    from scipy.stats import spearmanr

    for n in (2, 5, 36, 101):
        x, y = rng.integers(0, n, (2, n))
        y[:2], x[:2] = (0, 1), (0, 1)  # not all equal
        assert ranking.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
        assert ranking.spearman(x, x) == 1
        assert ranking.correlation(x, 3 * x + 1).rho == 1


def test_bootstrap_interval_is_deterministic_and_narrows_with_more_pairs(rng):
    x = rng.normal(size=400)
    y = x + rng.normal(size=400)
    found = ranking.correlation(x, y)
    assert found == ranking.correlation(x, y)
    assert found != ranking.correlation(x, y, seed=1)
    few = ranking.correlation(x[:10], y[:10])
    for one in (found, few):
        assert -1 <= one.low <= one.rho <= one.high <= 1
    assert found.high - found.low < 0.2 < few.high - few.low
    # by Fisher's transformation, whose standard error is sqrt((1 + rho^2 / 2) / (n - 3)) for ranks
    error = 1.96 * np.sqrt((1 + found.rho**2 / 2) / 397)
    expected = np.tanh(np.arctanh(found.rho) + np.array([-error, error]))
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.02)


def test_a_correlation_that_is_not_defined_is_none():
    assert ranking.correlation([1, 1, 1], [1, 2, 3]) == (None, None, None, 3)
    assert ranking.correlation([1], [1]).rho is None
    assert str(ranking.correlation([1, 1], [1, 2])) == "-"


def test_the_best_are_in_order_and_the_first_of_equals_comes_first():
    assert ranking.best([0.1, 0.5, 0.3, 0.5], 3).tolist() == [1, 3, 2]


def test_a_summary_by_hand():
    def cells(validation, test):
        return {
            name: {"validation": [v, v], "mean": t, "training_seconds": 2.0}
            for name, v, t in zip("abcdefg", validation, test, strict=True)
        }

    own = cells([0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.0], [0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6])
    whole = cells([0.0] * 7, [0.5, 0.0, 0.4, 0.3, 0.2, 0.1, 0.9])
    del whole["g"]  # one that failed
    found = proxy.summarise(own, whole)
    assert (found["chosen"], found["accuracy"], found["tied"], found["seconds"]) == ("a", 0.5, 1, 12)
    assert found["top"] == ["a", "c", "d", "e", "f"]  # 5 % are fewer than 5
    assert found["rho_top"]["rho"] == found["rho_all"]["rho"] == -1
    assert (found["rho_top"]["points"], found["rho_all"]["points"]) == (5, 6)
    assert found["validation"] == {"a": 0.9, "b": 0.1, "c": 0.8, "d": 0.7, "e": 0.6, "f": 0.5}
    assert proxy.summarise(own, {"a": whole["a"]}) is None
    assert [proxy.top_count(n) for n in (3, 100, 101, 720)] == [3, 5, 6, 36]


def test_held_out_images_are_in_no_training_set_and_none_is_lost():
    dataset = load(DataConfig())
    rest, images, labels = sampling.hold_out(dataset, 0.1, seed=0)
    assert len(images) == len(labels) == round(0.1 * dataset.counts.sum())
    assert rest.counts.sum() + len(labels) == dataset.counts.sum()
    assert rest.fingerprint() != dataset.fingerprint()

    def sorted_rows(images, labels):
        return np.sort([f"{label}{image.tobytes().hex()}" for image, label in zip(images, labels, strict=True)])

    kept_images, kept_labels = rest.flat()
    together = np.concatenate([kept_images, images]), np.concatenate([kept_labels, labels])
    assert (sorted_rows(*together) == sorted_rows(*dataset.flat())).all()
    again, other = (sampling.hold_out(dataset, 0.1, seed)[1] for seed in (0, 1))
    assert (again == images).all()
    assert (other != images).any()
    few = np.zeros((3, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="too few training images"):
        sampling.hold_out(Dataset.from_arrays(few, [0, 1, 2], few, [0, 1, 2]), 0.1, seed=0)


def test_end_to_end_and_a_second_start_measures_nothing(tmp_path, capsys, monkeypatch):
    steps = []
    advance = training.advance

    def counted(*arguments):
        state = advance(*arguments)
        steps.append((len(arguments[5].labels), int(state.step)))
        return state

    monkeypatch.setattr(training, "advance", counted)
    assert run(tmp_path / "nas", "--depths", 1, 9) == 0
    results, rows = results_of(tmp_path / "nas"), rows_of(tmp_path / "nas")
    assert (results["networks"], results["impossible"], results["validation_images"]) == (4, 4, 144)
    assert list(rows) == ["random", "dm", "early stopping", "whole"]
    assert [row["images"] for row in rows.values()] == [30, 30, 1294, 1294]
    assert [row["iterations"] for row in rows.values()] == [3, 3, 3, 3 * 6]  # batches of 250, as in the paper
    assert {size: {n for s, n in steps if s == size} for size in (30, 1294)} == {30: {1, 3}, 1294: {1, 3, 18}}
    assert sum(n == 3 for _, n in steps) == 4 * 3 * 2  # networks x (two proxies and early stopping) x trainings
    whole = rows["whole"]["test"]
    for row in rows.values():
        assert row["accuracy"] == whole[row["chosen"]]
        assert set(row["top"]) == set(whole)
    assert rows["whole"]["rho_all"]["rho"] == rows["whole"]["rho_top"]["rho"] == 1
    assert results["methods"]["dm"]["iterations"] == 4
    assert "--iterations 4" in results["about"]["command"]
    with Image.open(tmp_path / "nas" / "architecture_search.png") as picture:
        picture.load()
    assert "4 of the grid cannot be" in capsys.readouterr().out
    assert run(tmp_path / "nas") == 0
    printed = capsys.readouterr().out
    assert " s compiling" not in printed
    assert "| early stopping | " in printed
    assert without_seconds(results_of(tmp_path / "nas")) == {**without_seconds(results), "impossible": 0}


def test_the_whole_set_as_its_own_proxy_has_correlation_one(tmp_path):
    """A batch of all images: then early stopping is the whole training, and is to be the same to the bit."""
    flags = flags_of(
        "--workdir", tmp_path / "nas", "--methods", "random", "--widths", 4, "--evaluation.batch-size", 2000
    )
    flags = [*flags[: flags.index("--iterations")], *flags[flags.index("--chunk") :]]  # random has none
    assert search.main(flags) == 0
    rows = rows_of(tmp_path / "nas")
    assert len(rows["whole"]["test"]) == 2
    for accuracies in ("test", "validation"):
        assert rows["early stopping"][accuracies] == rows["whole"][accuracies]
    assert rows["early stopping"]["rho_all"]["rho"] == 1
    assert rows["early stopping"]["chosen"] == rows["whole"]["chosen"]


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(run_command, tmp_path, capsys):
    flags = flags_of()
    process = run_command.start("experiments.architecture_search", *flags, "--workdir", tmp_path / "killed")
    lines = [process.stdout.readline() for _ in range(6)]
    process.kill()
    process.communicate()
    assert lines[-1].startswith("early_stopping/ConvNet")  # in the middle of the first network
    again = run_command("experiments.architecture_search", *flags, "--workdir", tmp_path / "killed")
    undisturbed = run_command("experiments.architecture_search", *flags, "--workdir", tmp_path / "undisturbed")
    assert again.returncode == undisturbed.returncode == 0, again.stderr
    assert lines[-1].partition(":")[0] not in again.stdout
    results = [without_seconds(results_of(tmp_path / name)) for name in ("killed", "undisturbed")]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--depths", 9),
            "only 0 of the 4 networks of the grid can be for these images (network.depth 9 is too deep for 8x8 images",
        ),
        (("--depths",), "only 0 of the 0 networks of the grid can be"),
        (("--widths", 6, "--norms", "group"), "group needs a width that 4 divides"),
        (("--widths", 2, "--norms", "none"), "only 1 of the 1 networks of the grid can be for these images; name more"),
        (("--widths", 0), "widths must be at least 1, not 0"),
        (("--norms", "batch", "insance"), "'insance' is not one of none, batch, layer, instance, group"),
        (("--activations", "tanh"), "'tanh' is not one of sigmoid, relu, leakyrelu"),
        (("--ipc", 200), "ipc 200 asks for more images than class"),
        (("--subset", 1), "subset must be 2 to 4 networks, or 0 for all, not 1"),
        (("--subset", 5), "subset must be 2 to 4 networks, or 0 for all, not 5"),
        (("--subset", -1), "subset must be at least 0"),
        (("--methods", "dm", "whole"), "this method makes no set to study"),
        (("--methods", "dm", "dmm"), "unknown method 'dmm'"),
        (("--method", "dm"), "the methods are those of --methods; leave out --method"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, message):
    assert run(tmp_path / "study", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "study").exists()
