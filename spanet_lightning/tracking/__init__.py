"""What a run records in MLflow. Nothing else in the project, but for the sweeps, imports mlflow.

`logger` is what a training process has: it writes to a `spool`, and has a process of its own, the
`sender`, `replay` that into the `store`. Only that process, and who reads the store, import mlflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanet_lightning.tracking.addresses import DEFAULT_URI, redact, without_secret
    from spanet_lightning.tracking.logger import DEFAULT_EXPERIMENT, FOLDER, MLflowLogger
    from spanet_lightning.tracking.runs import dashboard, default_logger, record
    from spanet_lightning.tracking.store import connect

__all__ = [
    "DEFAULT_EXPERIMENT",
    "DEFAULT_URI",
    "FOLDER",
    "MLflowLogger",
    "connect",
    "dashboard",
    "default_logger",
    "record",
    "redact",
    "without_secret",
]

# The sender imports this package too, and needs neither lightning nor torch.
_LAZY = dict.fromkeys(__all__, "spanet_lightning.tracking.logger") | {
    **dict.fromkeys(
        ("DEFAULT_URI", "redact", "without_secret"), "spanet_lightning.tracking.addresses"
    ),
    **dict.fromkeys(("dashboard", "default_logger", "record"), "spanet_lightning.tracking.runs"),
    "connect": "spanet_lightning.tracking.store",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
