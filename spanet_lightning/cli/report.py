"""Write the report of a study: HTML, Markdown, LaTeX tables, CSV, JSON and figures.

It is made from the study's storage; --analysis reads the checkpoints of the trials as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from spanet_lightning.errors import ConfigError, invalid_choice
from spanet_lightning.summary import show

if TYPE_CHECKING:
    from spanet_lightning.sweep.study import Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet report`."""
    parser.add_argument(
        "study", metavar="STUDY_OR_FILE", help="name of the study, or the file that defines it"
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where the study is stored (default: sqlite:///sweeps.db)",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write (default: reports/STUDY)"
    )
    text = "write only these of html, markdown, latex (default: all); CSV, JSON and figures always"
    parser.add_argument("--format", metavar="A,B", help=text)
    text = "add the spectra of features of each arm's best checkpoint"
    parser.add_argument("--analysis", action="store_true", help=text)
    text = "photographs for --analysis: files or folders (default: two of scikit-learn's)"
    parser.add_argument("--images", nargs="+", metavar="PATH", help=text)


def run(args: argparse.Namespace) -> None:
    """Write the files and print the verdict.

    Raises:
        ConfigError: If the study can't be read, or the report can't be written.
    """
    from dataclasses import replace

    from spanet_lightning.report import build
    from spanet_lightning.report.results import load_results
    from spanet_lightning.sweep import storage

    formats = _formats(args.format, list(build.FORMATS))
    name, file_definition = _named(args.study)
    stored = storage.load(args.storage or storage.DEFAULT_URL, name)
    study = storage.definition_of(stored)
    if file_definition is not None:
        from spanet_lightning.sweep.study import changes, with_added_seeds

        extended = stored.user_attrs.get("extended", ())
        file_definition = with_added_seeds(file_definition, study, extended)
        changed = changes(study, file_definition)
        if changed:
            raise ConfigError(
                f"{args.study}: is not what the stored study was run with: "
                f"{'; '.join(changed[:4])}{'; …' if len(changed) > 4 else ''}; to report what was "
                f"run, give the name {name!r}"
            )
        # What is free to change, such as texts and published figures, is the file's.
        changeable = {"question", "note", "ablation"}
        study = study.model_copy(update={key: getattr(file_definition, key) for key in changeable})
    if args.images and not args.analysis:
        raise ConfigError("--images: requires --analysis")
    results = load_results(stored, study)
    folder = Path(args.output) if args.output else Path("reports") / name
    report = build.build_report(results)
    spectra: Mapping[str, bytes] = {}
    if args.analysis:
        from spanet_lightning.report.spectra import measure_spectra

        section, spectra = measure_spectra(results, args.images or ["sample"])
        report = replace(report, sections=[*report.sections, section])
    files = {**build.report_files(results, report, formats), **spectra}
    build.write_files(folder, files)
    if stored.user_attrs.get("tracker"):
        from spanet_lightning.sweep.tracker import log_report

        log_report(stored.user_attrs, report.verdict, folder)
    texts = [build.FORMATS[name] for name in formats]
    data = [file for file in files if file.endswith(("json", "csv")) and "/" not in file]
    show(
        escape(study.question),
        {
            "verdict": escape(report.verdict),
            "note": escape("\n".join(report.warnings)) or None,
            "report": ", ".join(str(folder / file) for file in texts),
            "data": ", ".join(str(folder / file) for file in data),
            "figures": str(folder / "figures") if report.figures else None,
        },
    )


def _formats(given: str | None, known: list[str]) -> list[str]:
    if given is None:
        return known
    chosen = [name.strip() for name in given.split(",")]
    for name in chosen:
        if name not in known:
            raise invalid_choice("--format", name, known)
    return chosen


def _named(given: str) -> tuple[str, Study | None]:
    """Return the name of a study, and its definition where a file was given."""
    if not given.endswith((".yaml", ".yml")):
        return given, None
    from spanet_lightning.sweep.study import read_study

    study = read_study(given)
    return study.name, study
