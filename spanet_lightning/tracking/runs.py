"""A run's logger where none is named, what is recorded before it starts, where to look at it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from spanet_lightning.tracking.addresses import (
    DEFAULT_URI,
    URI_VARIABLE,
    is_web,
    without_secret,
)
from spanet_lightning.tracking.logger import DEFAULT_EXPERIMENT, MLflowLogger


def default_logger() -> dict[str, Any]:
    """Return the logger of a run that names none, as a configuration states it."""
    arguments = {
        "experiment_name": DEFAULT_EXPERIMENT,
        # Its credentials stay in the environment, and out of every file.
        "tracking_uri": without_secret(os.environ.get(URI_VARIABLE) or DEFAULT_URI),
    }
    return {"class_path": "spanet_lightning.tracking.MLflowLogger", "init_args": arguments}


def record(
    loggers: Iterable[Logger],
    params: Mapping[str, Any],
    config: str,
    tags: Mapping[str, str],
    file: str = "config.yaml",
) -> None:
    """Record what a run is before it starts.

    Args:
        loggers: The loggers of the run; those that are not MLflow's get the parameters alone.
        params: The configuration by dotted keys, and what the model costs.
        config: The resolved configuration as YAML, which `--config` takes.
        tags: What to find the run by.
        file: Name of the configuration among the artifacts.
    """
    for logger in loggers:
        logger.log_hyperparams(dict(params))
        if isinstance(logger, MLflowLogger):
            logger.log_text(config, file)
            logger.set_tags(tags)


def dashboard(loggers: Iterable[Logger]) -> str | None:
    """Return the command that opens the dashboard of what was recorded, if it was in MLflow."""
    uri = next((lg.tracking_uri for lg in loggers if isinstance(lg, MLflowLogger)), None)
    if uri is None:
        return None
    clean = without_secret(uri)  # the address is enough
    if is_web(uri):
        return clean
    return "spanet ui" if uri == DEFAULT_URI else f"spanet ui --tracking-uri {clean}"
