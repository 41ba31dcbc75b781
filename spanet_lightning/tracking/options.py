"""What a run records beyond its metrics: the keys `tracking.…` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from spanet_lightning.errors import invalid, invalid_choice

CheckpointPolicy = Literal["none", "best", "last"]


@dataclass(frozen=True)
class TrackingOptions:
    """What a run records beyond its metrics.

    Args:
        log_images_every_n_epochs: Epochs between pictures: confusion matrix, best and worst
            predictions, spectral filters. The last epoch has them too; 0 draws none.
        predictions: Images in each picture of best and worst predictions.
        spectrum: Validation images of which the spectra of feature maps are drawn, block by block,
            with the other pictures; 0 draws none.
        grad_norm: Whether to record the norm of the gradients, every `trainer.log_every_n_steps`.
        system_metrics: Whether to record the load of the machine as well, as often.
        checkpoints: Checkpoint to record among the artifacts once training has ended: "best",
            "last" or "none". One takes three times the weights (AdamW's state is in it), and the
            folder of the run has it anyway.
        register: Registered model in MLflow that the best checkpoint becomes the next version of,
            exported as `spanet export --format pyfunc` does; null registers none.

    Raises:
        ConfigError: If a value is out of its range.
    """

    log_images_every_n_epochs: int = 10
    predictions: int = 12
    spectrum: int = 0
    grad_norm: bool = True
    system_metrics: bool = False
    checkpoints: CheckpointPolicy = "none"
    register: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for key, number, least in (
            ("log_images_every_n_epochs", self.log_images_every_n_epochs, 0),
            ("predictions", self.predictions, 1),
            ("spectrum", self.spectrum, 0),
        ):
            if number < least:
                raise invalid(f"tracking.{key}", number, f"at least {least}")
        if self.checkpoints not in get_args(CheckpointPolicy):
            raise invalid_choice(
                "tracking.checkpoints", self.checkpoints, get_args(CheckpointPolicy)
            )
        if self.register is not None and (not self.register or set(self.register) & set("/:")):
            raise invalid("tracking.register", self.register, "a name without '/' and ':', or null")
