"""The tables on the pages of methods, from the code and from the committed results.

    python docs/tables.py          # writes them anew
    python docs/tables.py --check  # says which pages are behind, and fails

Between `<!-- settings NAME -->` and `<!-- end -->` stand the flags of a method with their defaults and what they mean;
the third column, what its authors take, is written by hand and kept. Between `<!-- figures NAME -->` and `<!-- end -->`
stand measured and published accuracies, after `<!-- released all -->` the sets of the package. The tests run the
check, so that a page cannot fall behind.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dmjax import methods
from dmjax.config import Config, DataConfig, EvaluationConfig, PretrainedConfig
from dmjax.data import released
from dmjax.evaluation import protocols
from dmjax.methods.base import Method
from dmjax.methods.matching import Matching
from dmjax.settings import experiment, fields

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "experiments" / "results"
BLOCK = re.compile(r"(<!-- (settings|figures|released) ([a-z0-9]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SIZES = (1, 10, 50)
CIFAR10 = (32, 32, 3)

_ALWAYS = ("iterations", "batch_real", "init", "factor", "optimizer.name", "optimizer.learning_rate")
_POOL = ("networks", "epochs", "states", "spacing", "batch_size")

_DATA = {
    "digits": "digits (scikit-learn)",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn_cropped": "SVHN",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "TinyImageNet",
}


def main(arguments: list[str]) -> int:
    """Writes the tables, or checks them; returns the exit status."""
    behind = []
    for page in [*sorted((DOCS / "methods").glob("*.md")), DOCS / "released.md"]:
        text = page.read_text()
        if (fresh := renewed(text)) != text:
            behind.append(page.name)
            if "--check" not in arguments:
                page.write_text(fresh)
    if behind:
        print(f"{'behind' if '--check' in arguments else 'written'}: {', '.join(behind)}")
    return 1 if behind and "--check" in arguments else 0


def renewed(text: str) -> str:
    """A page with its tables as they are to be."""

    def block(match: re.Match) -> str:
        opening, kind, name, inside, closing = match.groups()
        made = (
            settings(name, by_hand(inside)) if kind == "settings" else figures(name) if kind == "figures" else cards()
        )
        return f"{opening}\n{made}\n\n{closing}"

    return BLOCK.sub(block, text)


def by_hand(table: str) -> dict[str, str]:
    """What a table of settings has in its third column, by the flag."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 4 and row[0].startswith("`--")}


def settings(name: str, authors: dict[str, str]) -> str:
    """The flags of a method: default on CIFAR-10 at 1, 10 and 50 images per class, the authors' value, meaning."""
    lines = ["| flag | default | authors' | meaning |", "|---|---|---|---|"]
    for flag, values, meaning in rows_of(name):
        distinct = [values[0]] if len(set(values)) == 1 else list(values)
        default = " / ".join(f"`{value}`" if value else "none" for value in distinct)
        cell = f"`--{flag}`"
        lines.append(f"| {cell} | {default} | {authors.get(cell, '')} | {meaning} |")
    return "\n".join(lines)


def rows_of(name: str) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Of every flag that the page of a method has: its name, the defaults at three sizes, and what it means."""
    cls = methods.built_in()[name]
    ours, plain = resolved(name), resolved("match")
    for field in methods.field_names(cls):
        values = tuple(map(functools.partial(_shown, field), ours))
        alike = issubclass(cls, Matching) and values == tuple(map(functools.partial(_shown, field), plain))
        if name == "match" or not alike or field in _ALWAYS:
            yield _flag(field), values, meaning_of(cls, field)
    if ours[0].method.uses_trained_networks():
        for field in _POOL:
            values = tuple(_text(getattr(config.pretrained, field)) for config in ours)
            yield f"pretrained.{_flag(field)}", values, meaning_of(PretrainedConfig, field)
    for field in protocols.FIELDS:
        values = tuple(_text(getattr(config.evaluation, field)) for config in ours)
        if values != tuple(_text(getattr(config.evaluation, field)) for config in plain):
            yield f"evaluation.{_flag(field)}", values, meaning_of(EvaluationConfig, field)


@functools.cache
def resolved(name: str) -> tuple[Config, ...]:
    """The configurations that a method has on CIFAR-10 where nothing is given, by images per class."""
    data = DataConfig(source="tfds", name="cifar10")
    return tuple(experiment.resolve(Config(data=data, method=name, ipc=ipc)) for ipc in SIZES)


def _shown(field: str, config: Config) -> str:
    if field == "factor":
        return _text(config.method.factor_of(config, CIFAR10))
    return _text(fields.flatten(config.method)[field])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return " ".join(_text(part) for part in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _flag(field: str) -> str:
    return field.replace("_", "-")


def meaning_of(cls: type, field: str) -> str:
    """The text below a field in the code."""
    group, _, rest = field.partition(".")
    if rest:
        default = next(f for f in dataclasses.fields(cls) if f.name == group).default_factory()
        return meaning_of(type(default), rest)
    for owner in cls.__mro__:
        if owner.__module__.startswith("dmjax") and (text := _texts(owner).get(field)):
            short = re.sub(r" \((?:by default|\d|--)[^()]*\)", "", " ".join(text.split()))  # the table has the defaults
            return short.replace("|", "\\|").rstrip(".")
    raise ValueError(f"{cls.__name__}.{field} has no text below it")


@functools.cache
def _texts(cls: type) -> dict[str, str]:
    [node] = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def figures(name: str) -> str:
    """What was measured, and what is published."""
    measured = [
        "| measured here, **reduced** | images per class | test accuracy, % | random real images, % | made in |",
        "|---|---|---|---|---|",
    ]
    measured += [f"| {' | '.join(row)} |" for row in measured_rows(name)]
    cls: type[Method] = methods.built_in()[name]
    published = ["| published, %, by images per class | 1 | 10 | 50 |", "|---|---|---|---|"]
    for data, values in cls.published.items():
        published.append(f"| {_DATA[data]} | {' | '.join('-' if v is None else f'{v:.1f}' for v in values)} |")
    tables = [rows for rows in (measured, published) if len(rows) > 2]
    text = "\n\n".join("\n".join(rows) for rows in tables)
    note = cls.published_note
    return text + (f"\n\nThe published figures: {note}." if note else "")


def measured_rows(name: str) -> Iterator[tuple[str, ...]]:
    """Of every committed measurement of a method: where and how, images per class, accuracy, random images, cost."""
    yield from _compared(name)
    yield from _by_own_model(name)
    yield from _at_equal_seconds(name)
    if name == "blend":
        yield from _blend()


def _compared(name: str) -> Iterator[tuple[str, ...]]:
    for folder, about in (
        ("digits", "digits, width 32; 1 set, 3 networks, 300 epochs"),
        ("mnist", "MNIST, width 32; 2 sets, 2 networks each, 300 epochs"),
        ("cifar10", "CIFAR-10 (JPEG), width 32; 1 set, 3 networks, 100 epochs"),
    ):
        rows = _read(f"{folder}/compare.json")["rows"]
        random = {row["ipc"]: row for row in rows if row["method"] == "random"}
        for row in rows:
            if row["method"] != name:
                continue
            beside = random.get(row["ipc"]) if name != "random" else None
            if name == "whole":
                where, _, _ = about.partition("; ")
                [epochs] = [text.split()[1] for text in row["settings"] if "whole_epochs" in text]
                yield f"{where}; {epochs} epochs", "all", _accuracy(row), "", f"{row['seconds']:.0f} s a network"
            else:
                accuracy = _accuracy(row)
                if row.get("own_evaluation"):
                    accuracy += f"; its own way {_accuracy(row['own_evaluation'])}"
                own = [text for text in row["settings"] if not re.match(r"network\.width|evaluation\.[ne]|runs", text)]
                cost = "; ".join([_seconds(row["seconds"]), *own])
                yield about, str(row["ipc"]), accuracy, _accuracy(beside), cost


def _by_own_model(name: str) -> Iterator[tuple[str, ...]]:
    for run in _read("mnist/performance_matching.json")["runs"]:
        if run["method"]["name"] != name:
            continue
        data = "CIFAR-10 (JPEG)" if run["dataset"] == "cifar10" else _DATA[run["dataset"]]
        judged = run["evaluation"]
        about = f"{data}, {run['network']['name']}; 1 set, {judged['networks']} networks, {judged['epochs']} epochs"
        if "accuracy" in run:
            plain, own, real = (run["accuracy"][key] for key in ("synthetic", "own", "random_real"))
            done, seconds = run["iterations_done"], run["seconds"]["condense"]
        else:
            end = run["own_at_the_end"]
            plain, own, real, done = end["common"], end["own"], None, end["iterations"]
            seconds = end["seconds"]["condense"]
        accuracy = f"{_accuracy(plain)}; its own way {_accuracy(own)}"
        yield about, str(run["ipc"]), accuracy, _accuracy(real), f"{seconds:.0f} s; iterations {done}"


def _at_equal_seconds(name: str) -> Iterator[tuple[str, ...]]:
    for file, about in (
        ("cifar10/ablation_ipc1.json", "CIFAR-10 (JPEG), width 64; 3 sets, 1 network each, 300 epochs"),
        ("cifar10/ablation_ipc1_width128.json", "CIFAR-10 (JPEG), width 128; 3 sets, 1 network each, 300 epochs"),
        ("mnist/ablation_ipc1.json", "MNIST, width 64; 3 sets, 1 network each, 300 epochs"),
        ("tiny_imagenet/ablation_ipc1.json", "TinyImageNet's 25 classes, width 32; 3 sets, 1 network each, 100 epochs"),
    ):
        rows = _read(file)["rows"]
        random = {row["factor"]: row["accuracy"] for row in rows if row["row"] == "random"}
        for row in rows:
            several = f"{row['factor']}x{row['factor']} in each" if row["factor"] > 1 else ""
            if row["row"] == name == "random":
                yield f"{about}{', ' if several else ''}{several}", "1", _accuracy(row["accuracy"]), "", ""
            elif row["row"] == name:
                cost = f"{row['condense_seconds']:.0f} s"
                if row["pretrain_seconds"]:
                    cost += f" and {row['pretrain_seconds']:.0f} s for networks"
                real = _accuracy(random.get(row["factor"])) + (f" ({several})" if several else "")
                cost += f"; iterations {row['iterations']}; batch_real 64"
                yield about, "1", _accuracy(row["accuracy"]), real, cost


def _blend() -> Iterator[tuple[str, ...]]:
    ten, tiny = _read("cifar10/blend_ipc10.json")["blend"], _read("tiny_imagenet/blend_ipc1.json")
    real = {row["factor"]: row for row in _read("tiny_imagenet/ablation_ipc1.json")["rows"] if row["row"] == "random"}
    beside = f"{_accuracy(real[4]['accuracy'])} (4x4 in each)"
    for run, about, random in (
        (ten, "CIFAR-10 (JPEG), width 64; 1 set, 1 network, 150 epochs", "not measured"),
        (tiny, "TinyImageNet's 25 classes, width 32; 1 set, 2 networks, 100 epochs", beside),
    ):
        seconds, accuracy = run["seconds"], run["accuracy"]["synthetic"]
        text = _accuracy(accuracy) if len(accuracy["values"]) > 1 else f"{100 * accuracy['mean']:.1f}"
        cost = f"{seconds['condense']:.0f} s and {seconds['pretrain']:.0f} s for networks; "
        yield about, str(run["ipc"]), text, random, f"{cost}iterations {run['iterations']}; batch_real 64"


def cards() -> str:
    """The sets that come with the package."""
    lines = [
        "| set | made by | iterations, seconds | network | accuracy, % | epochs | closest, and test images |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in released.names():
        card = released.card(name)
        network, seconds, accuracy = card["config"]["network"], card["seconds"], card["accuracy"]
        trained = f" + {seconds['pretrain']:.0f} for networks" if seconds["pretrain"] else ""
        lines.append(
            f"| `{name}` | `{card['method']}` | {card['iterations']}, {seconds['condense']:.0f}{trained} "
            f"| {network['name']}, width {network['width']} | {_accuracy(accuracy)} | {accuracy['epochs']} "
            f"| {card['closest']['median']:.2f} / {card['closest']['test_images']:.2f} |"
        )
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"


def _accuracy(row: dict[str, Any] | None) -> str:
    return f"{100 * row['mean']:.1f} +- {100 * row['std']:.1f}" if row else ""


@functools.cache
def _read(file: str) -> Any:
    return json.loads((RESULTS / file).read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
