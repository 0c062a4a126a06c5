"""The page of one run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmjax.common.errors import UserError
from dmjax.reporting import charts, markup, pictures, sections, source
from dmjax.reporting import command as commands
from dmjax.reporting.markup import Markup, element
from dmjax.reporting.pictures import Pictures
from dmjax.reporting.sections import Bar
from dmjax.reporting.source import Run
from dmjax.run import papers, report
from dmjax.settings import fields

_NAMES = 20  # of classes below a picture


def page(folder: Path) -> str:
    """The page of the run in a folder, as HTML."""
    run = source.read(folder)
    seen = read_pictures(run)
    try:
        body = [
            _header(run),
            images(run, seen),
            accuracy(run, run.results),
            progress([("loss", run)], run),
            differences(run),
            cost(run),
            repeat(run),
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / 'results.json'} is damaged; remove it, and give the run's command again") from None
    return markup.page(f"{run.dataset.name}, {run.method}", *(part for part in body if part))


def read_pictures(run: Run, most: int = pictures.MAX_PICTURES) -> Pictures:
    """The pictures of a run for its page, or for that of several runs."""
    per_class = run.synthetic.ipc if run.synthetic is not None else None
    return pictures.read(run.folder / "images", run.dataset.num_classes, run.dataset.image_shape, per_class, most)


def title(run: Run) -> str:
    """What was made, in a few words."""
    if run.synthetic is None:
        return f"{run.dataset.name}: {run.method}"
    return f"{run.dataset.name} in {sections.counted(len(run.synthetic.labels), 'image')}"


def lead(run: Run) -> str:
    """What was made, in a sentence."""
    there = sections.counted(run.about["dataset"].get("train_images", 0), "training image")
    about = f"{there} of {sections.counted(run.dataset.num_classes, 'class').replace('classs', 'classes')}"
    if run.synthetic is None:
        return f"Networks trained on the {about}."
    how = f"learned by {run.method} in {sections.counted(run.iterations, 'iteration')}"
    how = how if run.iterations else f"chosen by {run.method}"
    unpacked = f", each of which unpacks into {run.synthetic.factor**2}" if run.synthetic.factor > 1 else ""
    return f"{run.synthetic.ipc} per class{unpacked}, {how}, in place of {about}."


def _header(run: Run) -> Markup:
    results = run.results or {"accuracy": {}}
    main = results["accuracy"].get("synthetic") or results["accuracy"].get("whole_dataset")
    tiles: list[tuple[str, Any]] = []
    if main:
        tiles.append(("test accuracy", sections.percent(main["mean"], main["std"])))
    there = run.about["dataset"].get("train_images")
    if run.synthetic is not None and there:
        share = 100 * len(run.synthetic.labels) / there
        tiles.append(("of the training images", f"{share:.2g} %"))
    if "seconds" in results and run.synthetic is not None:
        made = results["seconds"]["condense"] + results["seconds"].get("pretrain", 0.0)
        tiles.append(("to make the set", sections.duration(made)))
    return sections.header("dmjax · one run", title(run), lead(run), [*tiles, ("seed", run.config.seed)])


def images(run: Run, seen: Pictures) -> Markup | None:
    """The images at the start and at the end, and all pictures between them behind a slider."""
    shown = seen.shown
    if not shown:
        return None
    first, last = shown[0], shown[-1]
    what = f"the set of {run.dataset.name}"
    captions = [f"start, iteration {first.iteration:,}", f"end, iteration {last.iteration:,}"]
    alts = [f"{what} before the first iteration", f"{what} after the last iteration"]
    if len(shown) == 1:
        captions, alts = ["the set"], [what]
    ends = [first, last][-len(captions) :]
    figures = [(picture.html(alt), caption) for picture, alt, caption in zip(ends, alts, captions, strict=True)]
    return sections.section(
        "The images",
        sections.gallery(figures),
        *_how_to_read(run, seen),
        _slider(what, seen) if len(shown) > 1 else None,
    )


def _how_to_read(run: Run, seen: Pictures) -> list[Markup]:
    """Which class an image is of, and what is not shown."""
    layout, synthetic = seen.layout, run.synthetic
    if layout is None or synthetic is None:
        return [sections.note("Each row is a class.")]
    names = synthetic.class_names[: layout.classes]
    listed = ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
    many, rows = layout.per_class > 1, layout.classes > layout.columns
    way = "Each column is a class" if many else "Each image is a class"
    order = "block by block from left to right" if many and rows else "row by row" if rows else "from left to right"
    notes = [f"{way}, {order}: {listed}."]
    if layout.classes < run.dataset.num_classes:
        notes.append(f"The first {layout.classes} of {run.dataset.num_classes} classes are shown.")
    if layout.per_class < synthetic.ipc:
        notes.append(f"{layout.per_class} of {synthetic.ipc} images of each class are shown.")
    if synthetic.factor > 1:
        notes.append(f"Each stored image unpacks into {synthetic.factor**2} training images.")
    return [sections.note(" ".join(notes))]


def _slider(what: str, seen: Pictures) -> Markup:
    """All pictures: a strip, which the script of the page turns into one picture and a slider."""
    figures = [
        element(
            "figure",
            picture.html(f"{what} after iteration {picture.iteration}"),
            element("figcaption", f"iteration {picture.iteration:,}"),
            data_label=f"iteration {picture.iteration:,}",
        )
        for picture in seen.shown
    ]
    last = len(figures) - 1
    control = element(
        "p",
        element("label", "Iteration", for_="iteration"),
        element("input", type="range", id="iteration", min=0, max=last, value=last, step=1),
        element("output", for_="iteration"),
        class_="control",
    )
    thinned = sections.note(f"{len(figures)} of {seen.there} pictures in images/, evenly spaced.")
    return element(
        "div",
        element("h3", "How they came about"),
        element("div", *figures, class_="frames", tabindex="0", role="group", aria_label="pictures by iteration"),
        control,
        thinned if len(figures) < seen.there else None,
        class_="slider",
    )


def accuracy(run: Run, results: dict[str, Any] | None, per_set: str = "") -> Markup:
    """The accuracies in results.json, or in runs.json, as a table with bars.

    Args:
      run: Of the set, or the first of several.
      results: What the file holds; None where there is none.
      per_set: Added to the number of networks, where these are of several sets.
    """
    if results is None:
        return sections.section(
            "Accuracy",
            element("p", "Not measured: ", element("code", "python -m dmjax.evaluate --synthetic synthetic.npz")),
        )
    own = run.config.method.own_evaluation if source.is_at_hand(run.config) else "its own evaluation"
    rows = []
    for name, label in report.labels(results, own).items():
        measured, size = results["accuracy"][name], report.per_class(results, name)
        images = "all images" if size == "all" else f"{size} per class"
        note = sections.joined(images, sections.networks(measured)) + per_set
        rows.append(Bar(label, note, measured["mean"], measured["std"], name))
    published = None
    if source.is_at_hand(run.config):
        published = papers.published(run.config.method, run.dataset.name, results["ipc"])
    if published is not None:
        rows.append(Bar("published", "in the paper, with its settings", published / 100, None, "published"))
    spread = "Mean and standard deviation over networks that were trained from scratch and tested on the test images."
    advice = [element("p", line) for line in report.advice(results)]
    return sections.section("Accuracy", sections.bars(rows), *advice, sections.note(spread))


def progress(named: Sequence[tuple[str, Run]], first: Run) -> Markup | None:
    """The curves of loss and accuracy against iterations.

    Args:
      named: The runs whose losses are drawn, with names for the legend.
      first: The run whose accuracies are drawn.
    """
    losses = [(name, [e for e in run.metrics if isinstance(e.get("loss"), int | float)]) for name, run in named]
    lines = [
        charts.Line(name, [e["iteration"] for e in found], [e["loss"] for e in found])
        for name, found in losses
        if found
    ]
    if not lines:
        return None
    values = [value for line in lines for value in line.y]
    steep = min(values) > 0 and max(values) > 10 * min(values)
    drawn = [charts.curves("Loss", "iteration", lines, logarithmic_y=steep)]
    measured = [(e["iteration"], e["accuracy_mean"], e["accuracy_std"]) for e in first.metrics if "accuracy_mean" in e]
    accuracies = (first.results or {"accuracy": {}})["accuracy"]
    hint = None
    if measured and accuracies.get("synthetic"):
        measured.append((first.iterations, accuracies["synthetic"]["mean"], accuracies["synthetic"]["std"]))
    if measured:
        x, y, error = zip(*((at, 100 * mean, 100 * std) for at, mean, std in measured), strict=True)
        levels = [
            charts.Level(name, 100 * accuracies[key]["mean"], key == "whole_dataset")
            for key, name in (("random_real", "random real"), ("whole_dataset", "whole set"))
            if accuracies.get(key)
        ]
        line = charts.Line("condensed", x, y, error, marked=True)
        drawn.append(charts.curves("Test accuracy (%)", "iteration", [line], levels))
    else:
        hint = sections.note("With ", element("code", "--evaluation.every N"), " accuracy is measured on the way too.")
    return sections.section("Along the way", element("div", *drawn, class_="charts"), hint)


def differences(run: Run, runs: int = 1) -> Markup:
    """The settings that are not the paper's, of a run that is one of several seeds."""
    if not source.is_at_hand(run.config):
        text = f"{run.method} is not part of dmjax, so that its defaults are not known here."
        settings = fields.flatten_dict(run.about["config"]["method"])
        values = [(name, json.dumps(value)) for name, value in settings.items() if name != "name"]
        listed = element("details", element("summary", "All settings of the method"), sections.facts(values))
        return sections.section("Settings", element("p", text), listed)
    whole = not run.config.method.makes_set
    found = papers.differences(run.config, run.dataset, whole, runs)
    of_paper = bool(vars(type(run.config.method)).get("published"))
    return sections.settings(found, of_paper, run.method)


def cost(run: Run, results: dict[str, Any] | None = None) -> Markup:
    """The seconds of a run, or those in `results`, and the machine."""
    results = results or run.results or {}
    speed = results.get("iterations_per_second")
    further = [("speed", f"{speed:.3g} iterations per second" if speed else None)]
    return sections.cost(results.get("seconds", {}), run.about, further)


def repeat(run: Run, runs: int = 1) -> Markup:
    """How the same set, or the same sets of several seeds, are made again."""
    fingerprint = element("code", run.about["dataset"].get("fingerprint", ""))
    data = element("p", "The data are the same where their fingerprint is ", fingerprint, ".")
    if run.config.data.source == "memory":
        python = "import dmjax\n\nsynthetic = dmjax.condense(dmjax.load_config('config.json'), dataset)"
        said = element("p", "The images were handed over in Python, where dataset is the same dmjax.Dataset:")
        ways = [said, element("pre", element("code", python), tabindex="0")]
    else:
        flags = commands.from_flags(dataclasses.replace(run.config, runs=runs))
        by_json = sections.command(commands.from_json(runs))
        ways = [element("p", "From config.json, in the folder that holds it:"), by_json]
        if flags is not None:
            ways = [sections.command(flags), *ways]
    what = "accuracies" if run.synthetic is None else "synthetic.npz, byte for byte"
    promise = f"On the same machine with the same versions this gives the same {what}."
    return sections.section("How to repeat it", *ways, element("p", promise), data, sections.configuration(run.about))
