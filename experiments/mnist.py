"""MNIST with the settings of the paper (Table 1).

    python -m dmjax.condense --config experiments/mnist.py --ipc 10                       # ~/tensorflow_datasets
    python -m dmjax.condense --config experiments/mnist.py --ipc 10 --data.source npz --data.path mnist.npz

Expected: 89.7 / 97.5 / 98.6 % at 1 / 10 / 50 images per class (paper). The full 20,000 iterations are meant for an
accelerator; with --iterations 300 --batch-real 64 --evaluation.epochs 300 --evaluation.networks 3 two CPU cores need
three minutes at 1 image per class and reach about 88 %. At 1.4 s an iteration the full run takes such a machine eight
hours; on an accelerator it is not measured yet.
"""

from dmjax import AugmentConfig, Config, DataConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="tfds", name="mnist"),
        augment=AugmentConfig(strategy="color_crop_cutout_scale_rotate"),  # a mirrored digit is no digit
    )
