"""What the server imports from which trials are forked. Nothing here may touch CUDA.

Some of it is imported by others at their first use only, such as torch._dynamo by an optimizer's
first step.
"""

from __future__ import annotations

import importlib
import json
import os
from contextlib import suppress

from spanet_lightning.sweep import trial
from spanet_lightning.sweep.command import resolver
from spanet_lightning.sweep.server import COMMAND_VARIABLE

__all__ = ["trial"]

for _name in (
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torchvision",
    "timm",
    "sklearn.datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "faster_coco_eval",
):
    with suppress(Exception):
        importlib.import_module(_name)

with suppress(Exception):  # a mistake in it is the supervisor's to report
    # What is read of every class that it names (signatures, documentation) is cached.
    resolver().parse(json.loads(os.environ[COMMAND_VARIABLE])).flat_config()
