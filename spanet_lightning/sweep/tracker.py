"""The study's own run in MLflow, the parent of its trials' runs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanet_lightning import tracking
from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep import storage
from spanet_lightning.sweep.store import StudyStore
from spanet_lightning.tracking.addresses import complete


def address(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return where a configuration records its runs, and in which experiment; None is nowhere.

    Args:
        config: Every value by its dotted key.
    """
    logger, kind = config.get("trainer.logger"), tracking.MLflowLogger
    # By the name that a configuration gives it, and by that of its module.
    known = {tracking.default_logger()["class_path"], f"{kind.__module__}.{kind.__name__}"}
    prefix = "trainer.logger."
    given = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    found = logger if isinstance(logger, list) else [{"class_path": logger, "init_args": given}]
    for one in found:
        if isinstance(one, Mapping) and one.get("class_path") in known:
            values = one.get("init_args") or {}
            uri = str(values.get("tracking_uri") or tracking.DEFAULT_URI)
            return complete(uri), str(values.get("experiment_name") or tracking.DEFAULT_EXPERIMENT)
    return None


def open_run(store: StudyStore, uri: str, experiment: str) -> str:
    """Return the id of the study's run, which the first command creates; empty is none.

    A server that is unreachable is no reason not to run a study: its trials are then without a
    parent, but all have the tag `study`.

    Args:
        store: The study.
        uri: Database or server.
        experiment: Name of the experiment.

    Raises:
        ConfigError: If MLflow refuses it.
    """
    from spanet_lightning.tracking import client

    client.check_address(uri)
    name, question = store.definition.name, store.definition.question
    url = storage.safe_url(store.url)
    with storage.exclusive(store.storage.engine):
        known = str(store.study.user_attrs.get("run_id", ""))
        note = client.study_note(name, question, url)
        head = {
            "uri": uri,
            "uid": uuid.uuid4().hex,
            "experiment": experiment,
            "name": name,
            "run_id": known,
            "time": int(time.time() * 1000),
            "tags": {"study": name, "question": question, client.NOTE_TAG: note, "storage": url},
        }
        try:
            opened = client.connect(uri)
            run_id: str = client.ensure_run(opened, head)
            if not known:
                opened.log_text(run_id, str(store.study.user_attrs["definition"]), "study.json")
                store.study.set_user_attr("tracker", tracking.without_secret(uri))
                store.study.set_user_attr("run_id", run_id)
        except ConfigError:
            raise
        except Exception as error:
            found = client.classify(error, uri)
            if isinstance(found, client.UnavailableError):
                _warn(uri, str(found))
                return ""
            raise ConfigError(
                f"trainer.logger.tracking_uri: {tracking.without_secret(uri)!r} has no run of this "
                f"study ({found}); is it another database than the study began with?"
            ) from None
    return run_id


def close_run(uri: str, run_id: str, *, finished: bool) -> None:
    """Tell MLflow that a command ended."""
    try:
        tracking.connect(uri).set_terminated(run_id, "FINISHED" if finished else "KILLED")
    except Exception as error:
        _warn(uri, " ".join(str(error).split())[:160])


def log_report(study_attrs: Mapping[str, Any], verdict: str, folder: Path) -> None:
    """Attach the verdict and the report to the study's run, where it has one.

    Args:
        study_attrs: User attributes of Optuna's study.
        verdict: The report's answer, in a sentence.
        folder: The report.
    """
    run_id, config = str(study_attrs.get("run_id", "")), study_attrs.get("tracker")
    if not run_id or not config:
        return
    try:
        opened = tracking.connect(str(config))
        opened.set_tag(run_id, "verdict", verdict[:5000])
        opened.log_artifacts(run_id, str(folder), "report")
    except Exception as error:
        _warn(str(config), " ".join(str(error).split())[:160])


def _warn(uri: str, why: str) -> None:
    from spanet_lightning.tracking.sender import say

    say(
        f"the run of the study can't be written to {tracking.without_secret(uri)} "
        f"({tracking.redact(why, uri)}); its trials are recorded all the same"
    )
