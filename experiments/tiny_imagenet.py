"""TinyImageNet (200 classes of 64x64 images; val is the test set) with the settings of the paper (Table 1).

    python -m dmjax.condense --config experiments/tiny_imagenet.py --ipc 10 --data.path tiny-imagenet-200/

Expected: 3.9 / 12.9 / 24.1 % at 1 / 10 / 50 images per class (paper). The path is the unpacked original folder, or a
tar of it. The full 20,000 iterations are meant for an accelerator, where they are not measured yet: an iteration is
about eighty of CIFAR-10. `auto` decides how many classes are computed at once; --class-chunk 10 says it.
"""

from dmjax import Config, DataConfig, NetworkConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="folder", name="tiny_imagenet"),
        network=NetworkConfig(depth=4),
    )
