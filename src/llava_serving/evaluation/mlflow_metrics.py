"""Logs figures to MLflow where a run tracks them. MLflow is no dependency of this project."""

import logging
import os
from collections.abc import Mapping

logger = logging.getLogger(__name__)
TRACKING_URI = "MLFLOW_TRACKING_URI"  # Azure Machine Learning sets it in every job


def log_metrics(metrics: Mapping[str, float | None]) -> bool:
    """Logs the metrics that have a value, and returns whether MLflow has them.

    Logs nothing without a tracking server in the environment. Failures become warnings: the figures are in the output
    folder anyway.
    """
    if not os.environ.get(TRACKING_URI):
        return False
    try:
        import mlflow
    except ImportError:
        logger.warning("%s is set, but there is no mlflow: the figures are only in the output folder", TRACKING_URI)
        return False
    try:
        mlflow.log_metrics({name: value for name, value in metrics.items() if value is not None})
    except Exception as error:  # mlflow's and its plugins' errors have no common class
        logger.warning("MLflow did not take the figures, which are in the output folder: %s", error)
        return False
    return True
