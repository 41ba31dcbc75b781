"""What a run records in MLflow. Nothing else in the project, but for the sweeps, imports mlflow."""

from spanet_lightning.tracking.logger import (
    DEFAULT_EXPERIMENT,
    DEFAULT_URI,
    MLflowLogger,
    connect,
    dashboard,
    default_logger,
    record,
)

__all__ = [
    "DEFAULT_EXPERIMENT",
    "DEFAULT_URI",
    "MLflowLogger",
    "connect",
    "dashboard",
    "default_logger",
    "record",
]
