"""dmjax: dataset condensation with distribution matching, in JAX.

import dmjax

config = dmjax.load_config("experiments/tiny.py")
synthetic = dmjax.condense(config)
accuracy = dmjax.evaluate(synthetic)
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "dmjax.config",
    "Dataset": "dmjax.data",
    "DataConfig": "dmjax.config",
    "NetworkConfig": "dmjax.config",
    "AugmentConfig": "dmjax.config",
    "PretrainedConfig": "dmjax.config",
    "EvaluationConfig": "dmjax.config",
    "CheckpointConfig": "dmjax.config",
    "DistributedConfig": "dmjax.config",
    "Method": "dmjax.methods",
    "Matching": "dmjax.methods.matching",
    "MatchConfig": "dmjax.methods.match_config",
    "QueueConfig": "dmjax.methods.network_queue",
    "DM": "dmjax.methods.distribution",
    "Blend": "dmjax.methods.blend",
    "IDM": "dmjax.methods.idm",
    "IID": "dmjax.methods.idm",
    "DataDAM": "dmjax.methods.datadam",
    "M3D": "dmjax.methods.m3d",
    "DSDM": "dmjax.methods.dsdm",
    "DANCE": "dmjax.methods.dance",
    "TGDD": "dmjax.methods.tgdd",
    "NCFM": "dmjax.methods.ncfm",
    "DC": "dmjax.methods.gradient",
    "DSA": "dmjax.methods.gradient",
    "GradientConfig": "dmjax.methods.gradient",
    "DD": "dmjax.methods.unrolled",
    "LD": "dmjax.methods.labels",
    "KIP": "dmjax.methods.kernel",
    "KernelConfig": "dmjax.methods.kernel",
    "OptimizerConfig": "dmjax.methods.optimizer",
    "load_config": "dmjax.settings.experiment",
    "load_released": "dmjax.data.released",
    "condense_runs": "dmjax.condense",
    "SyntheticSet": "dmjax.data.synthetic_set",
    "UserError": "dmjax.common.errors",
}
_COMMANDS = ("condense", "evaluate", "export", "pretrain")  # modules that can be called

__all__ = [*_PUBLIC, *_COMMANDS]


def __getattr__(name: str) -> Any:
    """Imports on first use: the configuration does not wait for JAX, nor the evaluator for the condensing side."""
    if name in _COMMANDS:
        return importlib.import_module(f"dmjax.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dmjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
