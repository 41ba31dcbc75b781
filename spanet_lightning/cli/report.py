"""Write the report of a study: Markdown, a page of HTML that opens offline, CSV, JSON, figures.

It is made from the storage alone, and of the same trials it is the same, byte for byte; --analysis
reads the checkpoints of the trials as well. A trial that was deleted or changed since it ended is
refused by name.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from spanet_lightning.errors import ConfigError
from spanet_lightning.summary import show

if TYPE_CHECKING:
    from spanet_lightning.sweep.definition import Study


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
    text = "add the spectra of features of each arm's best checkpoint"
    parser.add_argument("--analysis", action="store_true", help=text)
    text = "photographs for --analysis: files or folders (default: two of scikit-learn's)"
    parser.add_argument("--images", nargs="+", metavar="PATH", help=text)


def run(args: argparse.Namespace) -> None:
    """Write the files and tell the verdict.

    Raises:
        ConfigError: If the study can't be read, was tampered with, or can't be written.
    """
    from spanet_lightning.sweep import storage
    from spanet_lightning.sweep.report import build, png
    from spanet_lightning.sweep.report.gather import gather

    name, file_definition = _named(args.study)
    stored = storage.load(args.storage or storage.DEFAULT_URL, name)
    study = storage.definition_of(stored)
    if file_definition is not None:
        from spanet_lightning.sweep.comparison import differences, is_free, with_free_keys

        changed = differences(study.as_dict(), file_definition.as_dict())
        changes = [line for key, line in changed.items() if not is_free(key)]
        if changes:
            raise ConfigError(
                f"{args.study}: is not what the stored study was run with: "
                f"{'; '.join(changes[:4])}{'; …' if len(changes) > 4 else ''}; to report what was "
                f"run, give the name {name!r}"
            )
        study = with_free_keys(study, file_definition)
    if args.images and not args.analysis:
        raise ConfigError("--images: are those of --analysis, which is not given")
    found = gather(stored, study)
    folder = Path(args.output) if args.output else Path("reports") / name
    told = build.document(found)
    more: Mapping[str, bytes] = {}
    if args.analysis:
        from spanet_lightning.sweep.report.spectral import spectra

        spectral = spectra(found, args.images or ["sample"])
        told, more = spectral.added_to(told), spectral.files
    made = {**build.files(found, told), **more}
    build.write(folder, made)
    figures = "SVG" if not png.available() else "SVG, PNG"
    show(
        _plain(study.question),
        {
            "verdict": _plain(told.verdict),
            "note": _plain("\n".join(told.warnings)) or None,
            "page": str(folder / "report.html"),
            "text": str(folder / "report.md"),
            "data": ", ".join(str(folder / one) for one in made if one.endswith(("json", "csv"))),
            "figures": f"{folder / 'figures'} ({figures})",
            "no PNG": (
                None
                if png.available()
                else "needs matplotlib: pip install 'spanet-lightning[plots]'"
            ),
        },
    )


def _plain(text: str) -> str:
    """Return a text of the report for a terminal, where asterisks and brackets are themselves."""
    return escape(text.replace("**", ""))


def _named(given: str) -> tuple[str, Study | None]:
    """Return the name of a study, and its definition where a file was given."""
    if not given.endswith((".yaml", ".yml")):
        return given, None
    from spanet_lightning.sweep.parse import read_study

    study = read_study(given)
    return study.name, study
