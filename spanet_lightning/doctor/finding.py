"""One line of the doctor's: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "warning", "fault"]


class Finding(NamedTuple):
    """A line.

    Attributes:
        status: "fault" is what keeps a run from working, "warning" what may.
        what: What was looked at.
        found: What is there.
        advice: What to do; empty where it is well.
    """

    status: Status
    what: str
    found: str
    advice: str = ""
