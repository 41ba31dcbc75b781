"""If this fails, a person who opens the dashboard does not find the run, its curves, its pictures.

`nox -s browser` runs it, in the system's Chromium; nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracked import Recorded, recorded  # noqa: F401 - a fixture

CHROMIUM = shutil.which(os.environ.get("SPANET_CHROMIUM", "chromium"))
PATIENCE = 180_000  # ms that a page may take, on a machine that does other things as well

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` is installed"),
]


@pytest.fixture
def dashboard(recorded: Recorded) -> Iterator[str]:  # noqa: F811
    """Address that `spanet ui` prints for the store of a finished run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "spanet_lightning.app", "ui", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command, cwd=recorded.folder, stdout=subprocess.PIPE, text=True, env=environment
    ) as ui:
        try:
            told = ""
            for line in ui.stdout:
                told += line
                if line.startswith("MLflow: "):
                    yield line.removeprefix("MLflow: ").strip()
                    break
            else:
                pytest.fail(f"spanet ui ended: {told}")
        finally:
            ui.send_signal(signal.SIGINT)
            rest, _ = ui.communicate(timeout=120)
    assert "Stopped." in rest
    assert ui.returncode == 0


def test_the_run_its_curves_and_its_pictures_are_seen(
    dashboard: str,
    recorded: Recorded,  # noqa: F811
    tmp_path: Path,
):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    screenshots = Path(os.environ.get("SPANET_SCREENSHOTS") or tmp_path / "screenshots")
    screenshots.mkdir(parents=True, exist_ok=True)
    with api.sync_playwright() as playwright:
        # Root in a container has no sandbox to put pages into; this one is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(PATIENCE)

        assert re.search(r"/experiments/\d+/runs\?workflowType=machine_learning$", dashboard)
        page.goto(dashboard)
        run = page.get_by_role("link", name=recorded.run.name, exact=True).first
        run.wait_for()
        close = page.get_by_role("button", name=re.compile("close", re.IGNORECASE))
        if close.count():  # MLflow's assistant, which hides half of the table
            close.first.click()
        page.screenshot(path=screenshots / "runs.png")

        run.click()
        page.get_by_text("spanetv2_test").first.wait_for()  # the tag of the backbone
        page.screenshot(path=screenshots / "run.png")

        page.get_by_role("tab", name="Model metrics").click()
        chart = page.locator(".js-plotly-plot").first
        chart.wait_for()
        page.get_by_placeholder("Search metric charts").fill("^val/")
        page.get_by_text("lr-AdamW", exact=False).first.wait_for(state="hidden")  # filtered away
        page.locator(".js-plotly-plot .scatterlayer path").first.wait_for(state="attached")
        page.screenshot(path=screenshots / "metrics.png")

        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("images", exact=True).first.click()
        page.get_by_text(re.compile(r"^confusion val\+step.*\.png")).first.click()
        picture = page.locator("img[src^='blob:'], img[src*='get-artifact']").first
        picture.wait_for()
        width = picture.evaluate("image => image.decode().then(() => image.naturalWidth)")
        page.screenshot(path=screenshots / "artifact.png")
        browser.close()
    assert width > 500
    for name in ("runs", "run", "metrics", "artifact"):
        assert (screenshots / f"{name}.png").stat().st_size > 10_000
