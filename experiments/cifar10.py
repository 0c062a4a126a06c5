"""CIFAR-10 with the settings of the paper (Table 1).

    python -m dmjax.condense --config experiments/cifar10.py --ipc 10
    python -m dmjax.condense --config experiments/cifar10.py --ipc 100 --optimizer.learning-rate 10

Expected: 26.0 / 48.9 / 63.0 % at 1 / 10 / 50 images per class (paper), and 67.0 / 71.2 / 76.1 / 79.8 / 80.8 % at
100 / 200 / 500 / 1000 / 1250, from 100 on with a learning rate of 10. The full 20,000 iterations are meant for an
accelerator, where they are not measured yet: an iteration is 290 GFLOP at 10 images per class. Two CPU cores need
1.4 s for it, so eight hours for all, and thirteen at 50 images per class.
"""

from dmjax import Config, DataConfig


def get_config() -> Config:
    return Config(data=DataConfig(source="tfds", name="cifar10"))
