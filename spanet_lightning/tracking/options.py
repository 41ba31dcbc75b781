"""What a run records beyond its metrics: the keys `tracking.…` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from spanet_lightning.errors import invalid


@dataclass(frozen=True)
class TrackingOptions:
    """What a run records beyond its metrics.

    Args:
        pictures_every: Epochs between pictures for the tracker: confusion matrix, best and worst
            predictions, spectral filters. The last epoch has them too; 0 draws none.
        predictions: Images in each picture of best and worst predictions.
        grad_norm: Whether to record the norm of the gradients, every `trainer.log_every_n_steps`.
        system_metrics: Whether to record the load of the machine as well, as often.

    Raises:
        ConfigError: If a number is negative.
    """

    pictures_every: int = 10
    predictions: int = 12
    grad_norm: bool = True
    system_metrics: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for key, number, least in (
            ("pictures_every", self.pictures_every, 0),
            ("predictions", self.predictions, 1),
        ):
            if number < least:
                raise invalid(f"tracking.{key}", number, f"at least {least}")
