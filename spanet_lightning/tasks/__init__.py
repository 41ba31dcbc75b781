"""LightningModules: one for each task. They take built parts and own steps, metrics, optimizers."""

from spanet_lightning.tasks.base import Task
from spanet_lightning.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask", "Task"]
