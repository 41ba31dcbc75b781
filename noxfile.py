"""The tasks of a developer, and what CI runs: `python -m nox -s tests`, `python -m nox --list`."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"  # pip's own settings decide which torch is installed
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
# One environment for all sessions that need torch, which is gigabytes and a minute or more.
ENV = ROOT / ".nox" / "env"
PYTHON = ENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 11)


def install(session: nox.Session, *groups: str) -> None:
    """Make sure that the shared environment has the package and these dependency groups."""
    if sys.version_info < OLDEST:
        session.error(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {sys.version}")
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    # What was installed already is not asked for again: a second run needs no network.
    files = [(ROOT / "pyproject.toml").read_bytes(), CONSTRAINTS.read_bytes()]
    key = hashlib.sha256(b"".join(files) + repr(wanted).encode()).hexdigest()[:16]
    stamp = ENV / f"installed-{'-'.join(groups) or 'package'}-{key}"
    if stamp.exists():
        session.log(f"Using the environment {ENV.relative_to(ROOT)}")
        return
    session.log(
        f"Installing into {ENV.relative_to(ROOT)}: the package, {', '.join(wanted) or 'alone'}"
    )
    if not PYTHON.exists():
        session.run(sys.executable, "-m", "venv", str(ENV), external=True)
    session.run(
        *(str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("-c", str(CONSTRAINTS), "-e", str(ROOT), *wanted),
        external=True,
    )
    stamp.touch()


def python(session: nox.Session, *args: str) -> None:
    """Run the Python of the shared environment."""
    session.run(str(PYTHON), *args, external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests, on all cores."""
    install(session, "tests")
    python(session, "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Run the tests and report which lines they reach, which takes longer."""
    install(session, "tests")
    python(session, "-m", "pytest", "-n", "auto", "--cov", "--cov-report=term", *session.posargs)


@nox.session(venv_backend="none")
def slow(session: nox.Session) -> None:
    """Run the tests that take long."""
    install(session, "tests")
    python(session, "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session(venv_backend="none")
def chaos(session: nox.Session) -> None:
    """Kill, interrupt, starve and corrupt real runs, and compare what comes out of them."""
    install(session, "tests")
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_chaos_*.py"))
    files += [f"tests/test_{name}.py" for name in ("signals", "ddp")]
    python(session, "-m", "pytest", "-m", "slow or not slow", "-s", *files, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting; `nox -s lint -- --fix` repairs what can be repaired."""
    session.install(
        "--quiet", "-c", str(CONSTRAINTS), *nox.project.dependency_groups(PYPROJECT, "lint")
    )
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the types."""
    install(session, "types")
    python(session, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Train a small SPANetV2 on embedded images and test it."""
    install(session)
    python(session, "-m", "spanet_lightning.app", "demo", *session.posargs)


@nox.session(venv_backend="none")
def ablation(session: nox.Session) -> None:
    """Run an ablation on embedded images, two trials at a time, and write its report."""
    install(session)
    study = "sweeps/digits/srf_kernels.yaml"
    app = ("-m", "spanet_lightning.app")
    python(session, *app, "sweep", "run", study, "--workers", "2", *session.posargs)
    python(session, *app, "report", study)


@nox.session(venv_backend="none")
def browser(session: nox.Session) -> None:
    """Look at the dashboards in a headless Chromium, which has to be installed."""
    if shutil.which(os.environ.get("SPANET_CHROMIUM", "chromium")) is None:
        session.skip("there is no `chromium` here (Debian: apt-get install chromium)")
    install(session, "tests", "browser")
    python(session, "-m", "pytest", "-m", "slow", "tests/test_browser.py", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, without a warning; `nox -s docs -- serve` shows it."""
    install(session, "docs")
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # an announcement of mkdocs-material's
    python(session, "-m", "mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the source archive into dist/."""
    session.install("--quiet", "build")
    session.run("python", "-m", "build", "--outdir", "dist", *session.posargs)
