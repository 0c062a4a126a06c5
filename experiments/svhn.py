"""SVHN (cropped digits, without the extra images) with the settings of the paper.

    python -m dmjax.condense --config experiments/svhn.py --ipc 10

Expected: no figure is published in the paper. The full 20,000 iterations are meant for an accelerator, where they
are not measured yet; two CPU cores take eight hours, as for CIFAR-10.
"""

from dmjax import AugmentConfig, Config, DataConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="tfds", name="svhn_cropped"),
        augment=AugmentConfig(strategy="color_crop_cutout_scale_rotate"),  # a mirrored digit is no digit
    )
