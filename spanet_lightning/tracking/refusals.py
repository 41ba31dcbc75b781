"""What is said of a store that can't be used: MLflow is absent, it is none, it takes no runs."""

from __future__ import annotations

import importlib.util

from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking.addresses import DEFAULT_URI, redact, without_secret


def installed() -> bool:
    """Whether MLflow is there."""
    return importlib.util.find_spec("mlflow") is not None


def deleted(experiment: str) -> ConfigError:
    """Return the error for an experiment that was deleted."""
    return ConfigError(
        f"trainer.logger.experiment_name: got {experiment!r}, which was deleted "
        "in MLflow; restore it there, or give another name"
    )


def no_store(uri: str, reason: object) -> ConfigError:
    """Return the error for an address at which there is no store."""
    text = " ".join(redact(str(reason), uri).split())[:400]
    return ConfigError(
        f"trainer.logger.tracking_uri: got {without_secret(uri)!r}, expected a database or a "
        f"server of MLflow's, such as {DEFAULT_URI} ({text})"
    )
