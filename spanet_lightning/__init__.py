"""SPANet Lightning: train, ablate, track and analyse SPANet and SPANetV2.

Importing the package registers every variant with timm, so that `timm.create_model("spanet_s")`
works. It imports torch and timm, but neither lightning, mlflow nor optuna: tasks and data modules
are imported when they are first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spanet_lightning import broken
from spanet_lightning._version import __version__

try:
    from spanet_lightning.backbones import Backbone, SPANet, SPANetV2, load_official
except (ImportError, RuntimeError, OSError) as error:  # `spanet doctor` explains it
    if not broken.is_others(error):
        raise
    broken.REASON.append(error)

if TYPE_CHECKING:
    from spanet_lightning.data import (
        CocoDataModule,
        DigitScenesDataModule,
        DigitsDataModule,
        ImageClassificationDataModule,
        SegmentationFoldersDataModule,
    )
    from spanet_lightning.heads import (
        CascadeMaskRCNN,
        FasterRCNN,
        MaskRCNN,
        RetinaNet,
        SemanticFPN,
        UPerNet,
    )
    from spanet_lightning.tasks import ClassificationTask, DetectionTask, SegmentationTask
    from spanet_lightning.tracking.pictures import SpectrumPicture as SpectrumPicture

__all__ = [
    "Backbone",
    "CascadeMaskRCNN",
    "ClassificationTask",
    "CocoDataModule",
    "DetectionTask",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "FasterRCNN",
    "ImageClassificationDataModule",
    "MaskRCNN",
    "RetinaNet",
    "SPANet",
    "SPANetV2",
    "SegmentationFoldersDataModule",
    "SegmentationTask",
    "SemanticFPN",
    "UPerNet",
    "__version__",
    "load_official",
]

_LAZY = {
    "CascadeMaskRCNN": "spanet_lightning.heads",
    "ClassificationTask": "spanet_lightning.tasks",
    "CocoDataModule": "spanet_lightning.data",
    "DetectionTask": "spanet_lightning.tasks",
    "DigitScenesDataModule": "spanet_lightning.data",
    "DigitsDataModule": "spanet_lightning.data",
    "FasterRCNN": "spanet_lightning.heads",
    "ImageClassificationDataModule": "spanet_lightning.data",
    "MaskRCNN": "spanet_lightning.heads",
    "RetinaNet": "spanet_lightning.heads",
    "SegmentationFoldersDataModule": "spanet_lightning.data",
    "SegmentationTask": "spanet_lightning.tasks",
    "SemanticFPN": "spanet_lightning.heads",
    # Not among `__all__`, the classes that a wrong name is compared with: there, it would be the
    # only callback.
    "SpectrumPicture": "spanet_lightning.tracking.pictures",
    "UPerNet": "spanet_lightning.heads",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        broken.refuse()
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
