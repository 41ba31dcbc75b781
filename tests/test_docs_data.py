"""If one of these fails, docs/data.md tells users what does not work or is not printed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from spanet_lightning import app, cli
from tests import dense_sets
from tests.helpers import images

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.fixture
def sets() -> None:
    """Write what the page names: three data sets, two configurations, one of each without fault."""
    for language, block in BLOCKS:
        if language == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
    shop = dense_sets.coco(Path("shop"))
    for split in ("train", "val"):
        file = shop / "annotations" / f"instances_{split}.json"
        file.rename(file.with_name(f"{split}.json"))
    dense_sets.masks(Path("streets"))
    images(Path("pets"))
    app.main(["init", "shop"])


def plant() -> None:
    """Put into the shop what the page shows."""
    file = Path("shop/annotations/train.json")
    document = json.loads(file.read_text())
    document["annotations"][0]["category_id"] = 7
    document["annotations"][1]["bbox"] = [40.0, 40.0, 500.0, 20.0]
    file.write_text(json.dumps(document))
    Path("shop/val/008.jpg").unlink()
    Image.new("RGB", (60, 60)).save("shop/val/009.jpg")
    with Image.open("shop/val/007.jpg") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save("shop/val/007.jpg", exif=exif.tobytes())


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_accepted(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = command
    capsys.readouterr()
    if arguments[0] == "init":
        app.main([*arguments, "--force"])
        assert "Wrote shop.yaml, for detection" in capsys.readouterr().out
        return
    if program == "spanet":
        app.main(arguments)  # on a set without fault, which exits with 0
        assert "No faults." in capsys.readouterr().out
        return
    assert program == "lightning"
    arguments = [re.sub(r"^configs/", f"{ROOT}/configs/", argument) for argument in arguments]
    shown = [] if any(".help" in argument for argument in arguments) else ["--print_config"]
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*arguments, *shown])
    assert exit_info.value.code in (0, None)
    printed = capsys.readouterr().out
    for value in ("shop", "streets", "pets"):
        if any(value in argument for argument in arguments):
            assert f"root: {value}" in printed


@pytest.mark.usefixtures("sets")
def test_the_check_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    plant()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        app.main(["data", "check", "shop"])
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    shown = next(block for language, block in BLOCKS if "Faults" in block)
    assert shown.strip().splitlines() == printed
