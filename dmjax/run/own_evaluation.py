"""Judging a set in the way that its method learned it for: by its own training steps, or by kernel regression."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from dmjax import methods
from dmjax.common.errors import UserError
from dmjax.config import Config, EvaluateConfig
from dmjax.data import Dataset
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import on_device
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.judge import check_fits
from dmjax.evaluation.measuring import measure_each
from dmjax.evaluation.testing import Tested
from dmjax.run.program import make_abstract_problem


def judge_own(
    config: Config | EvaluateConfig, dataset: Dataset, synthetic: SyntheticSet, resume_file: Path | None = None
) -> Accuracy | None:
    """The accuracy of a set by `Method.test`; None for a method that has none.

    Args:
      config: The resolved configuration, with the method that made the set.
      dataset: The real data.
      synthetic: The set.
      resume_file: As for `dmjax.evaluation.judge.judge`.

    Raises:
      UserError: the set is not of these data, or lacks what the method left in it.
    """
    method = config.method
    if method.own_evaluation is None:
        return None
    check_fits(synthetic, dataset)
    problem = make_abstract_problem(config, dataset.num_classes, dataset.image_shape, dataset.mean, dataset.std)
    examples = on_device.place_test(dataset.test_images, dataset.test_labels, dataset.mean, dataset.std)
    key = jax.random.fold_in(jax.random.key(config.seed), 3)  # those of the networks in `judge`

    def measure(i: int, on_progress: Callable[[float], None]) -> Tested:
        try:
            return method.test(problem, synthetic, examples, jax.random.fold_in(key, i))
        except KeyError as error:
            name = methods.identifier(method)
            raise UserError(f"the set has no {error.args[0]!r}, which {name} leaves in it") from None

    about = (config.network, method, synthetic.digest())
    if not method.own_evaluation_is_random:
        once = dataclasses.replace(config.evaluation, networks=1)
        config = dataclasses.replace(config, evaluation=once)
    with methods.reported(method):
        return measure_each(config, dataset, measure, about, method.own_evaluation, resume_file)
