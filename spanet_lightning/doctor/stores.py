"""Can the stores of runs and of studies be reached? No address is shown with its password."""

from __future__ import annotations

import os

from spanet_lightning.doctor.finding import Finding
from spanet_lightning.errors import ConfigError


def tracker(uri: str | None) -> Finding:
    """Look at the store of runs.

    Args:
        uri: Its address; None takes that of the environment, or else `mlflow.db` beside.
    """
    from spanet_lightning.tracking.addresses import DEFAULT_URI, URI_VARIABLE, without_secret
    from spanet_lightning.tracking.client import check_store, installed

    uri = uri or os.environ.get(URI_VARIABLE) or DEFAULT_URI
    what = f"tracker {without_secret(uri)}"
    if not installed():
        found = "mlflow is not installed: runs are trained, but not recorded"
        return Finding("warning", what, found, "pip install mlflow, or trainer.logger=false")
    try:
        error_text = check_store(uri)
    except ConfigError as error:
        advice = f"correct trainer.logger.tracking_uri, or {URI_VARIABLE}"
        return Finding("fault", what, str(error), advice)
    if error_text:
        advice = "start it, or send later what waits: spanet track sync"
        return Finding("warning", what, f"does not answer: {error_text}", advice)
    return Finding("ok", what, "can take runs")


def studies(url: str) -> Finding:
    """Look at the store of studies.

    Args:
        url: Its address.
    """
    from spanet_lightning.sweep.storage import open_storage, refuse_tracker, safe_url

    what = f"studies {safe_url(url)}"
    try:
        refuse_tracker(url, None)
        open_storage(url, create=False)
    except ConfigError as error:
        text = str(error)
        if "no study yet" in text or "does not exist" in text:
            return Finding("ok", what, "holds no study yet: spanet sweep run makes it")
        return Finding("fault", what, text, "correct --storage")
    return Finding("ok", what, "can be read")
