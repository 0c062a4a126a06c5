"""ImageNet-1K at 64x64 (1000 classes, val is the test set) with the settings of the paper for 64x64 images.

    python -m dmjax.condense --config experiments/imagenet64.py --ipc 1 --data.path imagenet64/

The path is a folder with train/CLASS/* and val/CLASS/* (1,281,167 and 50,000 images of 64x64), or a tar of it; images
of other sizes want --data.image-size 64. From TFDS it is --data.source tfds --data.name imagenet_resized/64x64.
Expected: the paper has no figures for it, and it has not been run in full here; chance is 0.1 %.
How large: the decoded images are 16.6 GB in the cache (every class takes the room of the largest, 1300 images) and are
memory-mapped from there; a device holds 16.0 GB of them divided by the number of devices, so one of 16 GB is too small.
What a run needs beyond that, without running it: python -m dmjax.benchmark --case imagenet64-ipc1 --plan
Whatever trains on all images (--evaluation.whole-dataset, herding, kcenter, forgetting) copies them in the memory of
the host, and to one device.
"""

from dmjax import Config, DataConfig, NetworkConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="folder", name="imagenet64"),
        network=NetworkConfig(depth=4),
    )
