"""Configuration: frozen dataclasses, all in one place; every field is also a command-line flag.

An experiment file returns a `Config` from `get_config()`; `experiment.py` reads and checks it. The defaults are those
of the paper (Zhao & Bilen, *Dataset Condensation with Distribution Matching*, section 3.1, and the authors' code
where the paper is silent).
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
ALL_AUGMENTATIONS = (*AUGMENTATIONS, "noise")
"""Those of DSA, and that of DC's evaluation of networks with batch norm."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the real images come from."""

    source: Literal["digits", "npz", "folder", "tfds"] = "digits"
    """digits: scikit-learn's; npz: arrays in a file; folder: train/CLASS/* and test/CLASS/*, or a tar of them; tfds."""
    path: Path | None = None
    """The .npz, the folder or .tar[.gz|.xz], or the TFDS data_dir (default ~/tensorflow_datasets)."""
    test_path: Path | None = None
    """A second folder or tar that holds test/CLASS/*, where the test split is not under --data.path."""
    name: str | None = None
    """The name of the data set: which one to read from TFDS, and the row of the normalisation table that applies."""
    image_size: int | None = None
    """Resize (shorter side) and centre-crop every image to this many pixels."""
    skip_unreadable: bool = False
    """Count and leave out images that cannot be decoded instead of stopping at the first."""
    cache: Path | None = None
    """Where decoded folders, tars and TFDS sets are kept (default: $XDG_CACHE_HOME/dmjax, or ~/.cache/dmjax)."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network that embeds images when condensing, and that is trained when evaluating."""

    name: str = "ConvNet"
    """ConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18, ResNet18_AP, a short name such as ConvNetD4BN, or module:Class."""
    width: int | None = None
    """Of a ConvNet: channels of every block (128)."""
    depth: int | None = None
    """Of a ConvNet: number of blocks; by default 3 up to 32 pixels, 4 for 64, and one more for every doubling."""
    activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] | None = None
    """Of a ConvNet: after every norm (relu)."""
    norm: Literal["instance", "batch", "layer", "group", "none"] | None = None
    """After every convolution; by default instance for ConvNet, VGG and ResNet, none for AlexNet."""
    pooling: Literal["avg", "max", "none"] | None = None
    """Of a ConvNet: 2x2 with stride 2, at the end of every block (avg)."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What convolutions compute in; parameters, class means and logits are float32 in any case."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Differentiable Siamese augmentation (Zhao & Bilen 2021)."""

    strategy: str = "_".join(AUGMENTATIONS)
    """The groups to draw from, joined by '_', all but noise; 'none' for no augmentation. Leave flip out for digits."""
    align_corners: bool = True
    """How scale and rotate place the image in [-1, 1]; it only makes a difference to images that are not square."""


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Where the parameters of the networks that embed images come from (Zhao & Bilen, Table 4)."""

    distribution: Literal["random", "pool"] = "random"
    """random: drawn afresh in every iteration; pool: those of networks trained on the whole set (--pretrained)."""
    accuracy: tuple[float, float] | None = None
    """Of the pool only the states whose validation accuracy is at least the first number and below the second."""


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """Networks trained on the whole training set by the recipe of --evaluation, with states kept along the way."""

    path: Path | None = None
    """The folder in which they are kept and shared by runs (default: one in the cache that fits these settings)."""
    networks: int = 5
    """How many networks, each with its own initialisation; more of them are added to those that are there."""
    epochs: int = 20
    """Passes of each over the training images."""
    states: int = 20
    """States kept of each besides the initial one, close together at the start, where accuracy rises fast."""
    holdout: float = 0.1
    """Part of the training images that is held out to measure the accuracy of the states."""
    seed: int = 0
    """Of the networks and of what is held out."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optax optimizer of the synthetic images."""

    name: str = "sgd"
    """Any optimizer of optax that takes a learning_rate."""
    learning_rate: float | None = None
    """By default 1, the paper's, for a ConvNet, others have their own; CIFAR-10 wants 10 from 100 per class on."""
    options: tuple[tuple[str, float], ...] = (("momentum", 0.5),)
    """Further arguments of that optimizer, as NAME VALUE pairs."""


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Gradient matching (dc, dsa): the network that is trained along the way, and what is compared."""

    distance: Literal["ours", "mse", "cos"] = "ours"
    """ours: cosines per output of every layer; mse: squared distance, cos: cosine of the whole gradients."""
    outer: int | None = None
    """Times that the images move while one network is trained; by default by images per class, 10 for ten."""
    inner: int | None = None
    """Epochs that the network is trained on the synthetic images in between; by default 50 for ten per class."""
    learning_rate: float = 0.01
    """Of the network."""
    batch_size: int = 256
    """Synthetic images per training step of the network."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Networks trained from scratch on the small set and tested on the real test images."""

    networks: int = 20
    """How many networks, each with its own initialisation."""
    epochs: int | None = None
    """Passes over the small set; the learning rate falls to a tenth after the middle one. By default 1000, 300 for dc
    where nothing is augmented."""
    strategy: str | None = None
    """Augmentation of the training images; by default --augment.strategy, for dc what its authors use:
    crop_scale_rotate on MNIST, crop_noise with batch norm, else none."""
    every: int = 0
    """Also evaluate every so many iterations while condensing; 0: only at the end."""
    batch_size: int = 256
    """Images per training step; the last, partial batch is kept."""
    learning_rate: float = 0.01
    """Of SGD."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On all parameters."""
    random_real: bool = True
    """Evaluate as many random real images too, a new draw for every network."""
    whole_dataset: bool = False
    """Train on the whole real training set too (the upper bound)."""
    whole_epochs: int = 30
    """Passes over the whole training set."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept for a run that is interrupted."""

    every: int | None = None
    """Iterations between two checkpoints; by default 500 for dm, 10 for dc and dsa, whose iterations are long."""
    keep: int = 2
    """How many of the last checkpoints stay on disk."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes that condense together; nothing to give on one host, or under Slurm, Kubernetes, Cloud TPU."""

    coordinator: str | None = None
    """HOST:PORT of the first process, the same for all."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which one this is, from 0."""
    timeout: int = 300
    """Seconds to wait for the others at the start."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One condensation run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    pretrained: PretrainedConfig = dataclasses.field(default_factory=PretrainedConfig)
    gradient: GradientConfig = dataclasses.field(default_factory=GradientConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    method: str = "dm"
    """dm: distribution matching; dc, dsa: gradient matching, dsa with augmentation; random, herding, kcenter,
    forgetting: real images; whole makes no set, but trains networks on all images, as the upper bound."""
    ipc: int = 10
    """Synthetic images per class."""
    iterations: int | None = None
    """By default 20,000 updates of the synthetic images for dm, 1000 networks for dc and dsa."""
    batch_real: int = 256
    """Real images per class and iteration (all of a class that has fewer)."""
    init: Literal["real", "noise"] | None = None
    """Start from random real images of each class, or from Gaussian noise; by default noise for dc, else real."""
    seed: int = 0
    """All randomness of a run follows from this number."""
    runs: int = 1
    """Sets to make, with the seeds --seed, --seed + 1, ...: each as it is alone, all of them as one program."""
    chunk: int | None = None
    """Iterations compiled into one dispatch; the metrics are read once per chunk. By default 10, 1 for dc and dsa."""
    class_chunk: int | Literal["auto"] = "auto"
    """Classes computed at once on a device; auto: 1 on a CPU, on an accelerator as many as fit in its memory."""
    image_chunk: int | Literal["auto"] = "auto"
    """Images of a class embedded at once; auto: on a CPU as many as its cache holds, else as fit."""
    memory_gb: float | None = None
    """What `auto` may use on a device, in 10^9 bytes; by default what the device has."""
    images_every: int = 1000
    """Iterations between two pictures of the synthetic set; 0: only the first and the last."""
    workdir: Path | None = None
    """Where everything is written (default: runs/<name of the experiment file>, for a study and compare with its name
    behind it)."""
    progress: bool = True
    """Show progress bars when standard error is a terminal or a notebook."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation of a synthetic set, or of random real images."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    method: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "dm"
    """That made the set."""
    synthetic: Path | None = None
    """The synthetic.npz to evaluate; data, network and recipe are those of its run unless given."""
    pool: Literal["cross", "mixed", "width", "depth", "activation", "pooling", "norm"] | None = None
    """Train all networks of a pool instead: several families, or ConvNets that differ in one option."""
    random_real: int | None = None
    """Evaluate this many random real images per class instead of a synthetic set."""
    seed: int = 0
    """Of the networks, and of the random real images."""
    json: Path | None = None
    """Write the accuracies to this file as well."""
    progress: bool = True
    """Show progress bars when standard error is a terminal or a notebook."""


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time, on random data."""

    case: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """DATASET-ipcM (condensing) or evaluate-DATASET-ipcM (training on the result); repeat the flag for several."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    batch_real: int = 256
    """Real images per class and iteration."""
    class_chunk: int | Literal["auto"] = "auto"
    """As for condensing."""
    image_chunk: int | Literal["auto"] = "auto"
    """As for condensing."""
    memory_gb: float | None = None
    """As for condensing."""
    chunk: int | None = None
    """Iterations per dispatch; by default 10, and 1 where an iteration takes long."""
    devices: int | None = None
    """How many of the devices to use; by default all."""
    blocks: int = 5
    """How often to measure; the median counts."""
    seconds: float = 4.0
    """How long one measurement takes, about."""
    peer: str | None = None
    """Also time a peer, in turn with ours: `torch`, or a Python file that speaks like it."""
    profile: Path | None = None
    """Write a profile of every case into this folder, and print where the time goes."""
    scaling: tuple[int, ...] = ()
    """Instead of timing: compile for these numbers of simulated devices and report what each of them does."""
    plan: bool = False
    """Instead of timing: compile only, and report the memory that is needed and the chunks that were chosen."""
    json: Path | None = None
    """Write everything to this file as well."""


DISTRIBUTION, GRADIENT, CORESETS = ("dm",), ("dc", "dsa"), ("random", "herding", "kcenter", "forgetting")
METHODS = (*CORESETS, *GRADIENT, *DISTRIBUTION, "whole")
"""The methods, by what they do."""

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 20_000, "init": "real", "chunk": 10, "checkpoint.every": 500},
    "dc": {"iterations": 1000, "init": "noise", "chunk": 1, "checkpoint.every": 10, "optimizer.learning_rate": 0.1},
    "dsa": {"iterations": 1000, "init": "real", "chunk": 1, "checkpoint.every": 10, "optimizer.learning_rate": 0.1},
}
"""What a field is where None is given; section 3.1 of Zhao & Bilen 2023, and the authors' code for dc and dsa."""
