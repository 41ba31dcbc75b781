"""What the backbone does to frequencies, by block: SPANetV2's Fig. 3 as training goes on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from spanet_lightning.errors import invalid
from spanet_lightning.tracking.attach import FOLDER
from spanet_lightning.tracking.logger import MLflowLogger
from spanet_lightning.tracking.pictures import series
from spanet_lightning.tracking.telemetry import has_whole_tensors


class SpectrumPicture(Callback):
    """Draws the relative log-amplitude of feature maps on images that are validated anyway.

    As `spanet analyze spectrum` does, of the first images of the first validation batch, as the
    network gets them: the same ones each time, so that the figures of two epochs compare. It costs
    one more pass of those images through the backbone, and touches neither weights nor random
    numbers. The figure's data is recorded too, for `spanet analyze redraw`.

    Args:
        every: Epochs between pictures. The last epoch has one too.
        images: How many; no more than a validation batch has.

    Raises:
        ConfigError: If one is below 1.
    """

    def __init__(self, every: int = 10, images: int = 8) -> None:
        for key, value in (("every", every), ("images", images)):
            if value < 1:
                raise invalid(f"SpectrumPicture.{key}", value, "at least 1")
        self.every = every
        self.images = images
        self._kept: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't be drawn before hours are spent on training.

        Raises:
            ConfigError: If matplotlib is missing, or the model has no blocks.
        """
        from spanet_lightning.analysis.figures import require_matplotlib
        from spanet_lightning.analysis.taps import find_taps

        backbone = _backbone(pl_module)
        if stage == "fit" and backbone is not None:
            require_matplotlib()
            find_taps(backbone)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images, where a picture is due."""
        due = trainer.is_global_zero and series.is_due(trainer, self.every)
        if due and batch_idx == 0 and dataloader_idx == 0 and trainer.state.fn == "fit":
            images = batch[0]
            self._kept = images[: self.images] if isinstance(images, Tensor) else None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them as the network sees them now."""
        kept, self._kept = self._kept, None
        loggers = [one for one in trainer.loggers if isinstance(one, MLflowLogger)]
        backbone = _backbone(pl_module)
        if kept is None or backbone is None or not loggers or not has_whole_tensors(trainer):
            return
        from spanet_lightning.analysis import figures
        from spanet_lightning.analysis.figures import spectrum as drawing
        from spanet_lightning.analysis.models import Subject
        from spanet_lightning.analysis.spectrum import spectra

        # The images are normalised already.
        subject = Subject(series.when(trainer), backbone, (0.0,), (1.0,), None, 1.0, trained=True)
        with trainer.precision_plugin.forward_context():
            found = spectra(subject, [kept])
        title = f"Relative log amplitude of the outputs of blocks, {len(kept)} images"
        data = drawing.data([found], radial=False, title=title)
        series.log(trainer, figures.picture(data), "feature spectra")
        with tempfile.TemporaryDirectory() as folder:
            name = f"epoch-{trainer.current_epoch + 1:04d}.npz"
            file = figures.save_data(Path(folder) / name, data)
            for logger in loggers:
                logger.log_artifact(file, f"{FOLDER}/spectrum")


def _backbone(model: LightningModule) -> torch.nn.Module | None:
    """Return the network itself where it was compiled; None where a task has none."""
    backbone = getattr(model, "backbone", None)
    found = getattr(backbone, "_orig_mod", backbone)
    return found if isinstance(found, torch.nn.Module) else None
