"""Images of your own, in a few minutes on a CPU.

    python -m dmjax.condense --config experiments/own_images.py --data.path my_images/

Expected: a set that is above as many random images; where its pictures turn into noise, give a lower
--optimizer.learning-rate. Three classes of 40 images took 51 seconds on two CPU cores, evaluation included (91 %
against 76 %); the time goes with the number of classes.

my_images/ (or a .tar, .tar.gz or .tar.xz) holds train/CLASS/* and test/CLASS/*. Every image becomes one of 32x32, and
the set has one image per class. What an accelerator is for: --data.image-size 64 --ipc 10 --iterations 20000
--batch-real 256. Where a mirrored image means something else, as with letters:
--augment.strategy color_crop_cutout_scale_rotate.
"""

from dmjax import DM, CheckpointConfig, Config, DataConfig, EvaluationConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="folder", image_size=32),
        evaluation=EvaluationConfig(networks=3, epochs=300, whole_dataset=False),
        checkpoint=CheckpointConfig(every=100),
        method=DM(iterations=300, batch_real=64),
        ipc=1,
        images_every=100,
    )
