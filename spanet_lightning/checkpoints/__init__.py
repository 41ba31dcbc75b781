"""Checkpoints of runs: written whole or not at all, checked when they are read."""

from __future__ import annotations

from spanet_lightning.checkpoints.files import clear_partials, save
from spanet_lightning.checkpoints.found import Found, best_of, in_folder, look
from spanet_lightning.checkpoints.io import SafeCheckpointIO
from spanet_lightning.checkpoints.room import ROOM_FOR_TEXT, estimate, problem
from spanet_lightning.seal import DamagedError, verify

__all__ = [
    "ROOM_FOR_TEXT",
    "DamagedError",
    "Found",
    "SafeCheckpointIO",
    "best_of",
    "clear_partials",
    "estimate",
    "in_folder",
    "look",
    "problem",
    "save",
    "verify",
]
