"""Configuration of what every run has: frozen dataclasses, every field of which is also a command-line flag.

An experiment file returns a `Config` from `get_config()`; `dmjax.settings` reads, checks and completes it. What only
one method has is in the dataclass of that method (`dmjax.methods`). The defaults are those of Zhao & Bilen, *Dataset
Condensation with Distribution Matching*, section 3.1, and of the authors' code where the paper is silent.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from dmjax.common.errors import UserError, near_misses

AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
ALL_GROUPS = "_".join(AUGMENTATIONS)
ALL_AUGMENTATIONS = (*AUGMENTATIONS, "noise")
"""Those of DSA, and that of DC's evaluation of networks with batch norm."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, as metadata of its annotation: `Annotated[int, Range(1)]`.

    Attributes:
      low: The smallest value, or the bound that must be exceeded.
      high: The largest value.
      exclusive: Whether `low` itself is out of bounds.
    """

    low: float
    high: float = float("inf")
    exclusive: bool = False

    def contains(self, value: float) -> bool:
        """Tells whether a value is within the bounds."""
        return (value > self.low if self.exclusive else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"above {self.low:g}" if self.exclusive else f"at least {self.low:g}"
        return f"between {self.low:g} and {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Groups:
    """Names of augmentations joined by '_', as metadata of an annotation."""

    def contains(self, value: str) -> bool:
        """Tells whether all names are known."""
        return value == "none" or set(value.split("_")) <= set(ALL_AUGMENTATIONS)

    def __str__(self) -> str:
        return f"'none', or some of {', '.join(map(repr, ALL_AUGMENTATIONS))} joined by '_'"


Count = Annotated[int, Range(1)]
NonNegative = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, exclusive=True)]
Fraction = Annotated[float, Range(0, 1)]
Strategy = Annotated[str, Groups()]


class NamedFields:
    """What all dataclasses of settings inherit from: a name that is no field is refused in one line that says so."""

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if unknown := [name for name in settings if name not in known]:
            remedy = near_misses(unknown[0], known)
            if unknown[0] in vars(cls).get("__annotations__", {}):
                remedy = "put @dataclasses.dataclass(frozen=True) above its class"
            raise UserError(f"{cls.__name__} has no setting {unknown[0]!r}; {remedy}")
        return super().__new__(cls)


@dataclasses.dataclass(frozen=True)
class DataConfig(NamedFields):
    """Where the real images come from."""

    source: Literal["digits", "npz", "folder", "tfds", "torchvision", "huggingface", "memory"] = "digits"
    """digits: scikit-learn's; npz: arrays in a file; folder: train/CLASS/* and test/CLASS/*, or a tar of them; tfds;
    torchvision: the files that it downloaded; huggingface: a set of the library datasets; memory: a `dmjax.Dataset`
    that is handed over in Python."""
    path: Path | None = None
    """The .npz, the folder or .tar[.gz|.xz], the TFDS data_dir (default ~/tensorflow_datasets), the root that
    torchvision was given, or a folder of save_to_disk of datasets."""
    test_path: Path | None = None
    """A second folder or tar that holds test/CLASS/*, or folder of save_to_disk, where the test split is not under
    --data.path."""
    name: str | None = None
    """The name of the data set: which one to read from TFDS, of torchvision's root or, without --data.path, from the
    cache of the Hugging Face hub (OWNER/NAME or OWNER/NAME:CONFIGURATION); and the row of the normalisation table that
    applies."""
    image_column: str | None = None
    """The column of images of a huggingface set that has several."""
    label_column: str | None = None
    """The column of classes of a huggingface set that has several."""
    image_size: Count | None = None
    """Resize (shorter side) and centre-crop every image to this many pixels."""
    skip_unreadable: bool = False
    """Count and leave out images that cannot be decoded instead of stopping at the first."""
    zca: bool = False
    """Whiten the images by ZCA, fitted on the training images; pictures are shown as they were before."""
    zca_regularization: Annotated[float, Range(0)] = 0.1
    """Added to the eigenvalues of the covariance, in units of their mean."""
    cache: Path | None = None
    """Where decoded images are kept (default: $XDG_CACHE_HOME/dmjax, or ~/.cache/dmjax)."""

    @property
    def known_as(self) -> str | None:
        """The name by which tables know the set: of the hub's uoft-cs/cifar10 this is cifar10."""
        if self.source != "huggingface" or self.name is None:
            return self.name
        short = self.name.split(":")[0].split("/")[-1].lower().replace("-", "_")
        return "svhn_cropped" if short == "svhn" else short


@dataclasses.dataclass(frozen=True)
class NetworkConfig(NamedFields):
    """The network that embeds images when condensing, and that is trained when evaluating."""

    name: str = "ConvNet"
    """ConvNet, MLP, LeNet, AlexNet, AlexCifarNet, VGG11, ResNet18, ResNet18_AP, a short name such as ConvNetD4BN, or
    module:Class."""
    width: Count | None = None
    """Of a ConvNet: channels of every block (128)."""
    depth: Count | None = None
    """Of a ConvNet: number of blocks; by default 3 up to 32 pixels, 4 for 64, and one more for every doubling."""
    activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] | None = None
    """Of a ConvNet: after every norm (relu)."""
    norm: Literal["instance", "batch", "layer", "group", "none"] | None = None
    """After every convolution; by default instance for ConvNet, VGG and ResNet, none for AlexNet."""
    pooling: Literal["avg", "max", "none"] | None = None
    """Of a ConvNet: 2x2 with stride 2, at the end of every block (avg)."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """What convolutions compute in, by default float32 on a CPU, tf32 on GPUs (as PyTorch does) and bfloat16 on TPUs;
    parameters, class means and logits are float32 in any case."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig(NamedFields):
    """Differentiable Siamese augmentation (Zhao & Bilen 2021)."""

    strategy: Strategy = ALL_GROUPS
    """The groups to draw from, joined by '_', all but noise; 'none' for no augmentation. Leave flip out for digits."""
    composite: bool = False
    """Flip, colour and cutout are applied whenever the strategy names them, and one of crop, scale and rotate with them
    (Kim et al. 2022); otherwise one group alone is drawn."""
    align_corners: bool = True
    """How scale and rotate place the image in [-1, 1]; it only makes a difference to images that are not square."""


@dataclasses.dataclass(frozen=True)
class PretrainedConfig(NamedFields):
    """Networks trained on the whole training set, by a recipe of their own, and saved at several steps."""

    path: Path | None = None
    """The folder in which they are saved for all runs (default: one in the cache that belongs to these settings)."""
    networks: Count | None = None
    """How many networks, each with its own initialisation; more of them are added to those that are there (by default
    the method's, 5 for most)."""
    epochs: Count | None = None
    """Passes of each over the training images (by default the method's, 20 for most)."""
    states: Count | None = None
    """States saved of each besides the initial one (by default the method's, 20 for most)."""
    spacing: Literal["early", "even"] | None = None
    """early: close together at the start, where accuracy rises fast; even: at equal distances, which are epochs where
    --pretrained.states is --pretrained.epochs (by default the method's, early for most)."""
    batch_size: Count | None = None
    """Images per training step (by default what the method's authors use, 64 for most)."""
    learning_rate: Positive = 0.01
    """Learning rate of SGD; it falls to a tenth after the middle epoch."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Range(0)] = 5e-4
    """Weight decay on all parameters."""
    strategy: Strategy | None = None
    """Augmentation of the training images (by default that of --augment.strategy)."""
    together: Count = 1
    """Networks trained as one program, the same but for rounding: on a CPU slower than one after another, on an
    accelerator not measured."""
    holdout: Annotated[float, Range(0, 1, exclusive=True)] = 0.1
    """Fraction of the training images that is held out to measure the accuracy of the states."""
    seed: NonNegative = 0
    """Seed of the networks and of the choice of held-out images."""


ProtocolName = Literal["dm", "dc", "idc", "datadam", "ncfm", "ddranking"]
"""Of `dmjax.evaluation.protocols`."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(NamedFields):
    """Networks trained from scratch on the small set and tested on the real test images.

    What is left open (None) is as the protocol has it, or where no protocol is named as the authors of the method that
    made the set have it.
    """

    protocol: ProtocolName | None = None
    """Whose way of evaluating; what is given besides comes before what it says (by default that of the method's
    authors, for most the one of Zhao & Bilen 2023, whose values are in brackets below)."""
    networks: Count | None = None
    """How many networks, each with its own initialisation (20)."""
    epochs: Count | None = None
    """Passes over the small set (1000)."""
    strategy: Strategy | None = None
    """Augmentation of the training images (--augment.strategy)."""
    composite: bool | None = None
    """Flip, colour and cutout always, and one of the other groups with them, as for --augment.composite (false)."""
    every: NonNegative = 0
    """Also evaluate every so many iterations while condensing; 0: only at the end."""
    batch_size: Count | None = None
    """Images per training step; the last batch of an epoch may be smaller (256)."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """What trains the networks (sgd)."""
    learning_rate: Positive | None = None
    """Learning rate of the optimizer (0.01)."""
    momentum: Fraction | None = None
    """Momentum of SGD (0.9)."""
    weight_decay: Annotated[float, Range(0)] | None = None
    """Weight decay on all parameters (0.0005)."""
    schedule: tuple[Fraction, ...] | None = None
    """Fractions of the epochs after which the learning rate falls (0.5)."""
    rate_factor: Positive | None = None
    """What the learning rate is multiplied by each time (0.1)."""
    restart: bool | None = None
    """Make the optimizer anew where the rate falls, and that one epoch later, as the authors' code does (true)."""
    cutmix: Fraction | None = None
    """Probability that a batch is mixed by boxes of other images of it (0)."""
    mixup: Fraction | None = None
    """Probability that a batch is mixed by sums with other images of it (0)."""
    resized_crop: Fraction | None = None
    """Smallest share of an image's area that a random crop keeps, which is resized to the whole; 0: no crop (0)."""
    labels: Literal["stored", "hard", "teacher", "teacher-views"] | None = None
    """stored: those of the set; hard: the class of each image; teacher: the mean of what the networks of --pretrained
    say of it; teacher-views: of it as it is augmented and mixed, anew in every step (stored)."""
    temperature: Positive | None = None
    """Of a teacher's labels, which are softer above 1 (1)."""
    best: bool = False
    """Also say the best test accuracy over ten moments of the training. It is chosen on the test images, so that it is
    shown as what it is, and the last epoch counts."""
    random_real: bool = True
    """Evaluate as many random real images too, a new draw for every network."""
    whole_dataset: bool = False
    """Train on the whole real training set too (the upper bound)."""
    whole_epochs: Count = 30
    """Passes over the whole training set."""

    @property
    def is_taught(self) -> bool:
        """Whether the labels are those of the networks of --pretrained."""
        return self.labels in ("teacher", "teacher-views")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(NamedFields):
    """What is kept for a run that is interrupted."""

    every: Count | None = None
    """Iterations between two checkpoints (by default 500, and 10 for methods whose iterations are long)."""
    keep: Count = 2
    """How many of the last checkpoints stay on disk."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig(NamedFields):
    """Several processes that condense together; nothing to give on one host, or under Slurm, Kubernetes, Cloud TPU."""

    coordinator: str | None = None
    """HOST:PORT of the first process, the same for all."""
    num_processes: Count | None = None
    """How many there are."""
    process_id: NonNegative | None = None
    """Which one this is, from 0."""
    timeout: Count = 300
    """Seconds to wait for the others at the start."""


@dataclasses.dataclass(frozen=True)
class Config(NamedFields):
    """One condensation run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    pretrained: PretrainedConfig = dataclasses.field(default_factory=PretrainedConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    method: Any = "dm"
    """How the set is made: the name of a method, module:Class of one's own, or in Python the method itself with its
    settings, such as `DM(iterations=500)`."""
    ipc: Count = 10
    """Synthetic images per class."""
    seed: NonNegative = 0
    """All randomness of a run follows from this number."""
    runs: Annotated[int, Range(1, 1000)] = 1
    """Sets to make, with the seeds --seed, --seed + 1, ...: each as it is alone, all of them as one program."""
    chunk: Count | None = None
    """Iterations compiled into one dispatch, after which metrics are read (by default 10, and 1 for methods whose
    iterations are long)."""
    class_chunk: Count | Literal["auto"] = "auto"
    """Classes computed at once on a device; auto: 1 on a CPU, on a TPU as many as stay on the chip, on a GPU as many as
    fit in its memory."""
    image_chunk: Count | Literal["auto"] = "auto"
    """Images of a class embedded at once; auto: on a CPU as many as its cache holds, on a TPU as many as stay on the
    chip, on a GPU as fit. Of a number that is given only so many have their activations in memory: those of synthetic
    images are computed again for the gradient."""
    memory_gb: Positive | None = None
    """What `auto` may use on a device, in 10^9 bytes (by default what the device has)."""
    images_every: NonNegative = 1000
    """Iterations between two pictures of the synthetic set; 0: only the first and the last."""
    workdir: Path | None = None
    """The folder that everything is written to (by default runs/<name of the experiment file>, and for compare and the
    studies the same with their name behind it). In Python, None writes nothing."""
    progress: bool = True
    """Show progress bars when standard error is a terminal or a notebook."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(NamedFields):
    """One evaluation of a synthetic set, or of random real images."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    pretrained: PretrainedConfig = dataclasses.field(default_factory=PretrainedConfig)
    method: tyro.conf.Suppress[tyro.conf.Fixed[Any]] = Config.method
    """The method that made the set, whose authors' evaluation applies where nothing else is given."""
    synthetic: Path | None = None
    """The synthetic.npz to evaluate, or the name of a released set; data, network and recipe are those of its run
    unless given."""
    own: bool = False
    """Judge the set in the way that its method learned it for, where it has one."""
    pool: Literal["cross", "mixed", "width", "depth", "activation", "pooling", "norm"] | None = None
    """Train all networks of a pool instead: several families, or ConvNets that differ in one option."""
    random_real: Count | None = None
    """Evaluate this many random real images per class instead of a synthetic set."""
    factor: Count = 1
    """Real images along each side of a random one: factor^2 of them, reduced, share its pixels."""
    seed: NonNegative = 0
    """Seed of the networks and of the choice of random real images."""
    json: Path | None = None
    """Write the accuracies to this file as well."""
    progress: bool = True
    """Show progress bars when standard error is a terminal or a notebook."""


@dataclasses.dataclass(frozen=True)
class ExportConfig(NamedFields):
    """What to write a synthetic set as, and where."""

    synthetic: Path | None = None
    """The synthetic.npz of a run, or the name of a released set."""
    to: Literal["png", "numpy", "torch", "huggingface", "tfds"] = "png"
    """The format."""
    out: Path | None = None
    """The file or folder to write (by default beside the set, by the name of the format)."""


@dataclasses.dataclass(frozen=True)
class ReportConfig(NamedFields):
    """Which pages to make."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Working folders of runs and comparisons."""


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(NamedFields):
    """What to time, on random data."""

    case: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """DATASET-ipcM (condensing by dm), METHOD-DATASET-ipcM (by another method) or evaluate-DATASET-ipcM (training on
    the result), where DATASET is tiny, mnist, fashion_mnist, svhn, cifar10, cifar100, tiny_imagenet or imagenet64;
    repeat the flag for several."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    batch_real: Count | None = None
    """Real images per class and iteration (by default the method's)."""
    class_chunk: Count | Literal["auto"] = "auto"
    """As for condensing."""
    image_chunk: Count | Literal["auto"] = "auto"
    """As for condensing."""
    memory_gb: Positive | None = None
    """As for condensing."""
    chunk: Count | None = None
    """Iterations per dispatch; by default 10, and 1 where an iteration takes long."""
    devices: Count | None = None
    """How many of the devices to use; by default all."""
    blocks: Count = 5
    """How often to measure; the median counts."""
    seconds: Positive = 4.0
    """How long one measurement takes, about."""
    peer: str | None = None
    """Also time a peer, in turn with ours: `torch`, or a Python file that speaks like it."""
    profile: Path | None = None
    """Write a profile of every case into this folder, and print where the time goes."""
    scaling: tuple[Count, ...] = ()
    """Instead of timing: compile for these numbers of simulated devices and report what each of them does."""
    plan: bool = False
    """Instead of timing: compile only, and report the memory that is needed and the chunks that were chosen."""
    target: str | None = None
    """Instead of timing: compile for chips that need not be here, v4, v5e, v5p or v6e with their topology (v5e:1x1x1,
    v5e:4x4), or h100, and report what the compiler estimates."""
    json: Path | None = None
    """Write everything to this file as well."""
