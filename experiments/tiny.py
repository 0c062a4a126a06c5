"""Digits in a minute: scikit-learn's 8x8 digits, one synthetic image per class.

    python -m dmjax.condense --config experiments/tiny.py

Expected: on two CPU cores about a minute, start-up and compilation included; about 92 % for networks trained on the
ten synthetic images, 70 % on ten random real ones, 98 % on the whole training set.
"""

from dmjax import DM, AugmentConfig, CheckpointConfig, Config, DataConfig, EvaluationConfig, NetworkConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="digits"),
        network=NetworkConfig(width=32),
        augment=AugmentConfig(strategy="color_crop_cutout_scale_rotate"),  # a mirrored digit is no digit
        evaluation=EvaluationConfig(networks=5, epochs=300, whole_dataset=True, whole_epochs=15, batch_size=64),
        checkpoint=CheckpointConfig(every=250),
        method=DM(iterations=500, batch_real=64),
        ipc=1,
        chunk=25,
        images_every=250,
    )
