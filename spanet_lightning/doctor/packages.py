"""Are the packages those that the project needs, and are torch and torchvision a pair?"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from spanet_lightning.doctor.finding import Finding

DISTRIBUTION = "spanet-lightning"


def packages() -> Iterator[Finding]:
    """Yield a line for each package that is missing or out of its range, or one that all are in."""
    requirements, python = needed()
    here = platform.python_version()
    if python and not Requirement(f"python{python}").specifier.contains(here, prereleases=True):
        yield Finding("fault", "Python", here, f"install Python {python}")
    wrong = 0
    for requirement in requirements:
        finding = _fits(requirement)
        if finding is not None:
            wrong += 1
            yield finding
    if not wrong:
        found = f"{len(requirements)} within their supported range, Python {here}"
        yield Finding("ok", "packages", found)


def needed() -> tuple[list[Requirement], str]:
    """Return what the project requires, without its extras, and of Python.

    It is read from the installed package, or from the checkout where it is not installed.
    """
    try:
        texts = metadata.requires(DISTRIBUTION) or []
        python = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        texts, python = _of_checkout()
    found = []
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(requirement)
    return found, python


def pair() -> Finding:
    """Look whether torch and torchvision fit: torchvision's operators are built for one torch."""
    versions = {}
    for name in ("torch", "torchvision"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return Finding("fault", "torch and torchvision", f"no {name}", f"pip install {name}")
    shown = f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    advice = _pair_of(versions["torch"])
    asked = [Requirement(text) for text in metadata.requires("torchvision") or []]
    for requirement in asked:
        if requirement.name == "torch" and not requirement.specifier.contains(
            versions["torch"], prereleases=True
        ):
            found = f"{shown}, which asks for torch{requirement.specifier}"
            return Finding("fault", "torch and torchvision", found, advice)
    try:
        importlib.import_module("torch")
        operators = importlib.import_module("torchvision.ops")
        operators.nms  # noqa: B018 - is not there in a broken one
    except Exception as error:  # a pair that does not fit raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        found = f"{shown}: can't be imported together: {reason}"
        return Finding("fault", "torch and torchvision", found, advice)
    return Finding("ok", "torch and torchvision", shown)


def _pair_of(torch_version: str) -> str:
    """Return how to install the torchvision of a torch: 0.25 is that of 2.10, and so on."""
    version = Version(torch_version)
    if version.major != 2:
        return "install the two as a pair, from one index"
    local = f" of the same build ({version.local})" if version.local else ""
    return (
        f"install them as a pair, from one index: torchvision 0.{version.minor + 15} is that of "
        f"torch {version.major}.{version.minor}{local}"
    )


def _fits(requirement: Requirement) -> Finding | None:
    name, accepted = requirement.name, str(requirement.specifier)
    advice = f"pip install '{name}{accepted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("fault", name, "is not installed", advice)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return Finding("fault", name, f"{version}, supported is {accepted}", advice)


def _of_checkout() -> tuple[list[str], str]:
    import tomllib

    file = Path(__file__).parents[2] / "pyproject.toml"
    if not file.is_file():
        return [], ""
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return project["dependencies"], project["requires-python"]
