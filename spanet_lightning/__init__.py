"""SPANet Lightning: train, ablate, track and analyse SPANet and SPANetV2.

Importing the package costs nothing: torch, timm and lightning are imported when a class is first
used. Every variant is registered with timm whichever of the two is imported first, so that
`import timm, spanet_lightning; timm.create_model("spanet_s")` works.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spanet_lightning import import_errors
from spanet_lightning._version import __version__

if TYPE_CHECKING:
    from spanet_lightning.backbones import (
        Backbone,
        SPANet,
        SPANetV2,
        TimmBackbone,
        load_official,
    )
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
    from spanet_lightning.trainer import Trainer

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
    "TimmBackbone",
    "Trainer",
    "UPerNet",
    "__version__",
    "load_official",
]

LAZY = {
    "Backbone": "spanet_lightning.backbones",
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
    "SPANet": "spanet_lightning.backbones",
    "SPANetV2": "spanet_lightning.backbones",
    "SegmentationFoldersDataModule": "spanet_lightning.data",
    "SegmentationTask": "spanet_lightning.tasks",
    "SemanticFPN": "spanet_lightning.heads",
    "TimmBackbone": "spanet_lightning.backbones",
    # Not in `__all__`: the only callback there would be the suggestion for every mistyped one.
    "SpectrumPicture": "spanet_lightning.tracking.pictures",
    "Trainer": "spanet_lightning.trainer",
    "UPerNet": "spanet_lightning.heads",
    "load_official": "spanet_lightning.backbones",
}
"""Public names and the modules that they are imported from at first use."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with import_errors.explained():
        return getattr(importlib.import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _RegisterWithTimm(importlib.abc.MetaPathFinder):
    """Imports the backbones, which register themselves, as soon as timm has been imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - as importlib calls it
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Find timm as Python would, with the registration behind it."""
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("spanet_lightning.backbones")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("spanet_lightning.backbones")
else:
    sys.meta_path.insert(0, _RegisterWithTimm())
