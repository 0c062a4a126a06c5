"""Real and synthetic images in the features of a trained network, by t-SNE (Zhao & Bilen, Figure 3).

    python -m experiments.feature_plot --config experiments/mnist.py --sets runs/mnist/synthetic.npz --classes 3 5 8

One panel for each of `--sets`, all in the same plane. The network is the configured one, trained on the whole set
(`--pretrained.*`; it is trained once and kept). Half a minute beyond that.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from dmjax import networks
from dmjax.common import plots
from dmjax.common.errors import UserError, near_misses
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import pretrained, testing
from dmjax.evaluation.judge import check_fits
from dmjax.run import study
from dmjax.settings import cli, experiment


@dataclasses.dataclass(frozen=True)
class FeaturePlot(Config):
    """What is shown."""

    sets: tuple[Path, ...] = ()
    """Files synthetic.npz."""
    classes: tuple[str, ...] = ()
    """Names of the classes; by default the first three."""
    real_images: int = 300
    """Random real images per class."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    with study.opened(FeaturePlot, arguments, "python -m experiments.feature_plot", f"{__doc__}") as plot:
        dataset, varied = plot.dataset, plot.varied
        if not varied.sets:
            raise UserError("name one or more files synthetic.npz with --sets")
        if varied.real_images < 1:
            raise UserError(f"real_images must be at least 1, not {varied.real_images}")
        loaded = [SyntheticSet.load(path) for path in varied.sets]
        for synthetic in loaded:
            check_fits(synthetic, dataset)
        chosen = _classes(dataset, varied.classes)
        rng = np.random.default_rng(plot.config.seed)
        counts = [min(varied.real_images, int(dataset.counts[c])) for c in chosen]
        drawn = [np.sort(rng.permutation(dataset.counts[c])[:n]) for c, n in zip(chosen, counts, strict=True)]
        real = np.concatenate([dataset.images[c][indices] for c, indices in zip(chosen, drawn, strict=True)])
        labels = [np.repeat(np.arange(len(chosen)), counts)]
        images = [real.astype(np.float32) / 255]
        for synthetic in loaded:
            wanted = np.isin(synthetic.labels, chosen)
            images.append(synthetic.images[wanted])
            labels.append(np.searchsorted(np.sort(chosen), synthetic.labels[wanted]))
        network = networks.create(plot.config.network, dataset.num_classes, dataset.image_shape)
        best = pretrained.states(experiment.resolve(plot.config), dataset)[0][-1]
        arguments_of_all = np.concatenate(images), dataset.mean, dataset.std
        plane = _in_the_plane(testing.features(network, best.load(), *arguments_of_all), plot.config.seed)
        parts = np.split(plane, np.cumsum([len(part) for part in images])[:-1])
        names = [dataset.class_names[c] for c in chosen]
        panels = []
        for path, points, of_points in zip(varied.sets, parts[1:], labels[1:], strict=True):
            stars = np.repeat([False, True], [len(parts[0]), len(points)])
            both = np.concatenate([labels[0], of_points])
            panels.append((str(path.parent.name), np.concatenate([parts[0], points]), both, names, stars))
        judge = f"{networks.short_name(plot.config.network)} that classifies {100 * best.accuracy:.1f} % correctly"
        title = f"{dataset.name}, features of a {judge}"
        plots.scatter(plot.folder / "features.png", panels, title)
        rows = [[str(path), str(len(points))] for path, points in zip(varied.sets, parts[1:], strict=True)]
        results = {"classes": names, "network_accuracy": best.accuracy, "real_images": len(real)}
        plot.finish(results, study.markdown(["set", "images shown"], rows))


def _classes(dataset: Dataset, wanted: tuple[str, ...]) -> np.ndarray:
    """Numbers of the wanted classes, rising."""
    for name in wanted:
        if name not in dataset.class_names:
            raise UserError(
                f"classes: {dataset.name} has no class {name!r}; {near_misses(name, [*dataset.class_names])}"
            )
    numbers = [dataset.class_names.index(name) for name in wanted] or range(min(3, dataset.num_classes))
    return np.unique(list(numbers))


def _in_the_plane(features: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of features [n, F] -> [n, 2]; PCA first, as is usual for many features."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    few = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    return TSNE(random_state=seed, perplexity=min(30, (len(few) - 1) / 3)).fit_transform(few)


if __name__ == "__main__":
    sys.exit(main())
