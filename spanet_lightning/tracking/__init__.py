"""What a run records, in its folder and in MLflow.

`logger` is what a training process has: it writes an `event_log`, which a thread (`sender`) sends
to MLflow (`client`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanet_lightning.tracking.addresses import DEFAULT_URI, redact, without_secret
    from spanet_lightning.tracking.client import connect
    from spanet_lightning.tracking.logger import DEFAULT_EXPERIMENT, MLflowLogger
    from spanet_lightning.tracking.runs import dashboard, default_logger, record

__all__ = [
    "DEFAULT_EXPERIMENT",
    "DEFAULT_URI",
    "MLflowLogger",
    "connect",
    "dashboard",
    "default_logger",
    "record",
    "redact",
    "without_secret",
]

# Commands that need an address alone import neither lightning nor MLflow.
_LAZY = dict.fromkeys(__all__, "spanet_lightning.tracking.logger") | {
    **dict.fromkeys(
        ("DEFAULT_URI", "redact", "without_secret"), "spanet_lightning.tracking.addresses"
    ),
    **dict.fromkeys(("dashboard", "default_logger", "record"), "spanet_lightning.tracking.runs"),
    "connect": "spanet_lightning.tracking.client",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
