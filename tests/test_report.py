"""report.html: what it says is what the files say, it needs nothing but itself, and no name becomes markup."""

import base64
import io
import json
import shlex
import shutil
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dmjax import __main__ as command
from dmjax import compare, condense, load_config, reporting
from dmjax import report as report_command
from dmjax.common.errors import UserError
from dmjax.data import synthetic_set
from dmjax.reporting import charts, markup, pictures
from dmjax.reporting.markup import element
from dmjax.run import report as run_report

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = [HOSTILE, "\"quoted\" & 'single'", "</script><script>alert(2)</script>"]
SMALL = (
    *("--config", str(ROOT / "experiments" / "tiny.py"), "--progress", "false", "--data.source", "npz"),
    *("--network.width", "4", "--network.depth", "1", "--evaluation.networks", "2", "--evaluation.epochs", "2"),
    *("--evaluation.whole-epochs", "1"),
)
QUICK = (*SMALL, "--iterations", "4", "--chunk", "1", "--batch-real", "4", "--images-every", "1")


class Page(HTMLParser):
    """The elements of a page: `found` holds the attributes and the text of each, by its name."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text()
        self.found, self._open = {}, []
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        one = {**dict(attributes), "text": ""}
        self.found.setdefault(tag, []).append(one)
        if tag not in ("img", "input", "meta", "link", "br", "wbr"):
            self._open.append((tag, one))

    def handle_endtag(self, tag):
        assert self._open[-1][0] == tag, f"{tag} closes {self._open[-1][0]}"
        self._open.pop()

    def handle_startendtag(self, tag, attributes):
        self.found.setdefault(tag, []).append({**dict(attributes), "text": ""})

    def handle_data(self, data):
        for _, one in self._open:
            one["text"] += data

    def commands(self):
        return [shlex.split(one["text"]) for one in self.found["pre"] if one.get("class") == "command"]

    def numbers(self):
        return [float(one["value"]) for one in self.found["data"]]

    def pictures(self):
        """The PNGs that are in the page, decoded."""
        sources = [one["src"] for one in self.found["img"]]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        opened = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
        for picture in opened:
            assert picture.format == "PNG"
            picture.load()
        return opened

    def loads_nothing(self):
        """Whether there is no address from which anything could be loaded, and the browser is told so."""
        given = [one[name] for every in self.found.values() for one in every for name in ("src", "href") if name in one]
        given += [one["xlink:href"] for every in self.found.values() for one in every if "xlink:href" in one]
        [policy] = [one["content"] for one in self.found["meta"] if one.get("http-equiv") == "Content-Security-Policy"]
        outside = [address for address in given if not address.startswith(("data:", "#"))]
        relative = all(":" not in address and not address.startswith("/") for address in outside)
        return relative and "default-src 'none'" in policy and "http" not in self.text.replace("http-equiv", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data whose names are hostile, and a run, a run with two seeds, and a comparison on them."""
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 6)
    images = (60 * labels[:, None, None, None] + rng.integers(0, 60, (18, 8, 8, 3))).astype(np.uint8)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(folder / "data.npz", **arrays, class_names=np.array(CLASSES))
    data = ["--data.path", str(folder / "data.npz"), "--data.name", HOSTILE]
    run = ["--workdir", str(folder / "run <i> & 'co'"), "--evaluation.every", "2", "--ipc", "2"]
    assert condense.main([*QUICK, *data, *run]) == 0
    assert condense.main([*QUICK, *data, "--workdir", str(folder / "seeds"), "--runs", "2", "--ipc", "1"]) == 0
    compared = ["--methods", "random", "dm", "whole", "--ipc", "1", "2", "--runs", "1"]
    compared += ["--iterations-of", "dm", "4", "--batch-real", "4", "--workdir", str(folder / "comparison")]
    assert compare.main([*SMALL, *data, *compared]) == 0
    return folder


@pytest.fixture
def run(folder):
    return folder / "run <i> & 'co'"


def test_the_numbers_are_those_of_the_results(run):
    page, results = Page(run / "report.html"), json.loads((run / "results.json").read_text())
    numbers = page.numbers()
    for name in ("synthetic", "random_real", "whole_dataset"):
        accuracy = results["accuracy"][name]
        assert accuracy["mean"] in numbers
        assert f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f} %" in page.text
    for name in ("condense", "compile", "evaluate"):
        assert results["seconds"][name] in numbers
    config = json.loads((run / "config.json").read_text())
    for shown in (config["processor"], config["versions"]["jax"], config["commit"], config["dataset"]["fingerprint"]):
        assert str(shown) in page.text
    rows = [one["text"] for one in page.found["tr"]]
    assert "iterations420000" in rows  # setting, here, in the paper
    assert "batch_real4256" in rows
    assert "runs15" in rows
    [saved] = [one["href"] for one in page.found["a"] if one.get("download") == "config.json"]
    assert json.loads(base64.b64decode(saved.partition(",")[2])) == config


def test_a_set_that_is_no_better_than_random_images_is_said_to_be():
    def results(condensed, random, iterations=3):
        return {"iterations": iterations, "accuracy": {"synthetic": condensed, "random_real": random}}

    [line] = run_report.advice(results({"mean": 0.3}, {"mean": 0.3}))
    assert "--optimizer.learning-rate" in line
    assert run_report.advice(results({"mean": 0.31}, {"mean": 0.3})) == []
    assert (
        run_report.advice(results({"mean": 0.2}, None))
        == run_report.advice(results({"mean": 0.2}, {"mean": 0.3}, 0))
        == []
    )


def test_pictures_and_curves_are_in_the_page(run):
    page = Page(run / "report.html")
    assert len(page.pictures()) == 2 + 5  # start and end, and every iteration behind the slider
    assert all(one["alt"] for one in page.found["img"])
    [slider] = [one for one in page.found["input"] if one["type"] == "range"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "4", "4")
    assert [one["data-label"] for one in page.found["figure"] if "data-label" in one] == [
        f"iteration {i}" for i in range(5)
    ]
    loss, accuracy = [one["aria-label"] for one in page.found["svg"]]
    assert loss.startswith("Loss; loss: ")
    assert "condensed: " in accuracy
    assert " at 4" in accuracy
    assert "var(--series-0)" in page.text
    assert "#00f" not in page.text  # a colour that matplotlib drew in and the style does not know
    ids = [one["id"] for every in page.found.values() for one in every if one.get("id")]
    assert len(ids) == len(set(ids))


def test_pictures_are_laid_out_anew_from_those_in_the_folder(rng):
    """The images of a picture of a set come out again as they are, a class to a column, with gaps nobody sees."""
    pixels = rng.integers(0, 256, (3, 2, 8, 6, 3)).astype(np.uint8)
    made = synthetic_set.from_pixels(pixels, np.zeros(3, np.float32), np.ones(3, np.float32), ["a", "b", "c"])
    tiles = pictures._tiles(made.picture(), 3, 2, (8, 6, 3))
    np.testing.assert_array_equal(tiles, pixels)
    drawn = np.asarray(pictures._laid_out(tiles, pictures.Layout.of(3, 2, (8, 6, 3))))
    assert drawn.shape == (2 * 8 + 1, 3 * 6 + 2, 4)
    np.testing.assert_array_equal(drawn[9:, 7:13, :3], pixels[1, 1])
    assert drawn[8].max() == 0
    assert pictures._tiles(made.picture(), 3, 3, (8, 6, 3)) is None  # of another layout


def test_a_page_stays_small():
    assert pictures.thinned(range(1001), 5) == [0, 250, 500, 750, 1000]
    assert pictures.thinned(range(7), 30) == list(range(7))
    large = [pictures.Picture(i, b"0" * 600_000, 10, 10) for i in range(30)]
    kept = pictures.within(large, pictures.MAX_BYTES)
    assert sum(picture.size for picture in kept) <= pictures.MAX_BYTES
    assert (kept[0].iteration, kept[-1].iteration, len(kept)) == (0, 29, 12)
    assert pictures.Layout.of(10, 50, (32, 32, 3)) == (10, 10, 10)
    assert pictures.Layout.of(100, 10, (32, 32, 3)) == (100, 2, 10)
    assert pictures.Layout.of(1000, 1, (64, 64, 3)) == (81, 1, 10)
    assert pictures.Layout.of(10, 1, (8, 8, 1)) == (10, 1, 5)


def test_many_pictures_are_thinned_and_the_page_says_so(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for i in range(5, 100):
        shutil.copy(copy / "images" / "000004.png", copy / "images" / f"{i:06d}.png")
    page = Page(reporting.write(copy))
    assert len(page.pictures()) == 2 + pictures.MAX_PICTURES
    assert "30 of 100 pictures" in page.text
    (copy / "images" / "000003.png").write_bytes(b"no picture")  # one that was shown is left out
    assert len(Page(reporting.write(copy)).pictures()) == 2 + pictures.MAX_PICTURES - 1


def test_nothing_is_loaded_and_no_name_is_markup(folder, run):
    for page in map(Page, (run / "report.html", folder / "seeds" / "report.html", folder / "comparison/report.html")):
        assert page.loads_nothing()
        assert len(page.found["script"]) == 1
        assert not any("onerror" in one for one in page.found["img"])
        assert HOSTILE in page.found["title"][0]["text"]
    text = " ".join(one["text"] for one in Page(run / "report.html").found["p"])
    assert all(name in text for name in CLASSES)


def test_markup_escapes_whatever_is_not_markup():
    assert element("p", "<b>", element("i", "&"), None, class_='"x"', hidden=True, title=None) == (
        '<p class="&quot;x&quot;" hidden>&lt;b&gt;<i>&amp;</i></p>'
    )
    assert element("br") == "<br>"
    assert markup.join(1, "<") == "1&lt;"
    lines = [charts.Line("<b> $a$", [1, 2], [3, 4]), charts.Line("c", [1], [2])]
    assert ">&lt;b&gt; $a$<" in charts.curves("loss", "x", lines)


def test_the_same_files_give_the_same_bytes(folder, run, capsys):
    for place in (run, folder / "seeds", folder / "comparison"):
        before = (place / "report.html").read_bytes()
        (place / "report.html").unlink()
        assert command.main(["report", str(place)]) == 0
        assert (place / "report.html").read_bytes() == before
    assert capsys.readouterr().out.splitlines()[0] == str(run / "report.html")


@pytest.mark.parametrize("which", [0, 1])
def test_the_commands_in_the_page_give_the_same_set(run, tmp_path, monkeypatch, which):
    """By flags, and by config.json, which is all that its folder needs to hold."""
    shutil.copy(run / "config.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = Page(run / "report.html").commands()[which]
    assert words[:3] == ["python", "-m", "dmjax.condense"]
    assert ("config.json" in words) == (which == 1)
    assert condense.main(words[3:]) == 0
    assert (tmp_path / "repeated" / "synthetic.npz").read_bytes() == (run / "synthetic.npz").read_bytes()


def test_several_seeds_have_a_page_that_links_to_theirs(folder, tmp_path, monkeypatch):
    place = folder / "seeds"
    page, pooled = Page(place / "report.html"), json.loads((place / "runs.json").read_text())
    assert pooled["accuracy"]["synthetic"]["mean"] in page.numbers()
    links = {one["href"] for one in page.found["a"] if "download" not in one}
    assert links == {"seed_0/report.html", "seed_1/report.html"}
    assert all((place / link).exists() for link in links)
    assert len(page.pictures()) == 2
    monkeypatch.chdir(tmp_path)
    assert condense.main(page.commands()[0][3:]) == 0
    for seed in ("seed_0", "seed_1"):
        again = (tmp_path / "repeated" / seed / "synthetic.npz").read_bytes()
        assert again == (place / seed / "synthetic.npz").read_bytes()


def test_a_comparison_has_a_page(folder, capsys):
    place = folder / "comparison"
    page, results = Page(place / "report.html"), json.loads((place / "results.json").read_text())
    numbers = page.numbers()
    assert all(row["mean"] in numbers for row in results["rows"])
    assert len(page.pictures()) == 4  # two methods, two sizes; whole has none
    assert page.commands() == [shlex.split(results["about"]["command"])]
    rows = [one["text"] for one in page.found["tr"]]
    assert any(row.startswith("wholeall") for row in rows)
    assert "a" not in page.found
    one_run = place / "runs" / "dm" / "ipc_1" / "run_0"
    assert report_command.main([str(one_run), str(place)]) == 0
    assert "Not measured" in Page(one_run / "report.html").text
    page = Page(place / "report.html")
    assert [one["href"] for one in page.found["a"]] == ["runs/dm/ipc_1/run_0/report.html"]
    (one_run / "report.html").unlink()
    reporting.write(place)


@pytest.mark.parametrize("left", ["killed before the page", "killed before the results"])
def test_a_run_that_was_killed_has_a_page_in_the_end(run, folder, tmp_path, left, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    if left == "killed before the results":
        (copy / "results.json").unlink()
    data = ["--data.path", str(folder / "data.npz"), "--data.name", HOSTILE]
    flags = [*QUICK, *data, "--workdir", str(copy), "--evaluation.every", "2", "--ipc", "2"]
    assert condense.main(flags) == 0
    page, results = Page(copy / "report.html"), json.loads((copy / "results.json").read_text())
    assert len(page.pictures()) == 7
    assert all(results["seconds"][name] in page.numbers() for name in ("condense", "compile", "evaluate"))
    assert capsys.readouterr().err == ""


def test_a_page_that_fails_costs_no_results(folder, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(charts, "curves", fail)
    data = ["--data.path", str(folder / "data.npz"), "--ipc", "1"]
    assert condense.main([*QUICK, *data, "--workdir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"]["synthetic"]
    assert not (tmp_path / "run" / "report.html").exists()
    error = capsys.readouterr().err
    assert error.startswith("no report.html: RuntimeError: no font; python -m dmjax.report ")
    assert error.count("\n") == 1


def test_what_is_no_run_is_one_line(run, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text('"experiments.ablation"')
    shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("results.json", "synthetic.npz"))
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "results.json").write_text("{")
    for i, content in enumerate(("[]", "{}", '{"accuracy": {}}')):
        shutil.copytree(run, tmp_path / f"odd_{i}")
        (tmp_path / f"odd_{i}" / "results.json").write_text(content)
    shutil.copytree(run, tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text('{"config": {"method": "dm"}}')
    for arguments, message in (
        ([], "name the working folder"),
        ([str(tmp_path)], "holds no run and no comparison"),
        ([str(tmp_path / "nowhere")], "holds no run and no comparison"),
        ([str(tmp_path / "study")], "no comparison of methods"),
        ([str(tmp_path / "unfinished")], "not finished"),
        ([str(tmp_path / "damaged")], "is damaged"),
        *(([str(tmp_path / f"odd_{i}")], "is damaged") for i in range(3)),
        ([str(tmp_path / "old")], "made by an older dmjax"),
    ):
        assert report_command.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_a_method_of_ones_own_is_not_imported(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["method"] = {"name": "nowhere_to_be_found:Method", "iterations": 4, "strength": "<b>"}
    config["config"]["network"]["name"] = "nowhere_to_be_found:Network"
    (copy / "config.json").write_text(json.dumps(config))
    page = Page(reporting.write(copy))
    assert "not part of dmjax" in page.text
    assert [one["text"] for one in page.found["dd"]].count('"<b>"') == 1
    assert page.commands()[0][3:5] == ["--config", "config.json"]
    assert len(page.commands()) == 1


def test_a_configuration_is_an_experiment(run, tmp_path):
    stored = json.loads((run / "config.json").read_text())
    assert load_config(run / "config.json").method.iterations == 4
    (tmp_path / "plain.json").write_text(json.dumps(stored["config"]))
    assert load_config(tmp_path / "plain.json") == condense.dataclasses.replace(
        load_config(run / "config.json"), workdir=load_config(tmp_path / "plain.json").workdir
    )
    for text, message in (
        ("[]", "no configuration"),
        ("{", "is damaged"),
        ('{"config": {"ipd": 3}}', "unknown field 'ipd'"),
        ('{"method": {"name": "nowhere_to_be_found:Method"}}', "nowhere_to_be_found"),
    ):
        (tmp_path / "plain.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(tmp_path / "plain.json")


@pytest.mark.browser
@pytest.mark.skipif(browser.reason_to_skip() is not None, reason=str(browser.reason_to_skip()))
def test_a_browser_shows_it_on_a_screen_and_on_a_phone(folder, run):
    with browser.opened() as window:
        for place in (run, folder / "seeds", folder / "comparison"):
            for width, dark in ((1280, False), (360, True)):
                window.look_as(width, dark=dark)
                window.open(place / "report.html")
                assert window.run("innerWidth") == width
                assert window.run("document.images.length") > 1
                assert window.problems() == []
        window.look_as(360)
        window.open(run / "report.html")
        assert window.run("[...document.querySelectorAll('.frames figure')].filter(f => f.offsetParent).length") == 1
        window.driver.execute_script(
            "const slider = document.getElementById('iteration'); slider.value = 2;"
            "slider.dispatchEvent(new Event('input'))"
        )
        shown = "document.querySelector('.frames figure:not([hidden]) figcaption').textContent"
        assert window.run(shown) == "iteration 2"
        assert window.run("document.querySelector('output').textContent") == "iteration 2"
        window.look_as(360, script=False)
        window.open(run / "report.html")  # all pictures are in a strip
        assert window.run("[...document.querySelectorAll('.frames figure')].filter(f => f.offsetParent).length") == 5
        assert window.problems() == []
