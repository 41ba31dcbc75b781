"""Silence for what Lightning says at every start, and that says nothing of the run."""

from __future__ import annotations

import logging
import warnings

_ALWAYS_SAID = (
    "💡 Tip",
    "GPU available: False",
    "TPU available",
    "HPU available",
    "Seed set to",
    "Restoring states from",  # the next line names the checkpoint again
    "Trainer already configured with model summary",
)


def quieten() -> None:
    """Drop such lines and warnings from now on, in this process."""
    # Lightning 2.6 on torch 2.14; about their code, not about what a user wrote.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # Only training saves checkpoints, so nothing else has the callback that did.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")
    # Of DDP, on convolutions of one channel, whose memory has two layouts that are the same.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_news)  # the same function is added only once


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_ALWAYS_SAID)
