"""One listing of files, names that are almost right, pairs of images and masks."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from spanet_lightning.data.listing import (
    LINKS_VARIABLE,
    NearNames,
    list_images,
    natural_order,
    pair_by_stem,
    scan,
)
from spanet_lightning.errors import DataError


def save(path: Path, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format=kind)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.jpg", "JPEG"), ("a.JPG", "JPEG"), ("a.jfif", "JPEG"), ("a.webp", "WEBP")),
        *(("a.tif", "TIFF"), ("a.bmp", "BMP"), ("a.gif", "GIF"), ("a.ppm", "PPM")),
        *(("a", "PNG"), ("scan.2024-05-01", "PNG"), ("a.tga", "TGA"), ("sub/a.jp2", "JPEG2000")),
    ],
)
def test_every_image_that_pillow_reads_is_listed(name: str, kind: str, tmp_path: Path) -> None:
    save(tmp_path / name, kind)
    assert scan(tmp_path).names == (name,)


def test_hidden_files_and_those_of_systems_are_not_listed(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    for name in (
        *("._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", "sub/.git/x/a.jpg"),
        *("Thumbs.db", "desktop.ini", ".DS_Store"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    listing = scan(tmp_path)
    assert listing.names == ("a.jpg",)
    assert listing.left_out() == "1 hidden .jpg"


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    for name in ("a.txt", "b.TXT", "notes", "raw.cr2", "a.eps"):
        (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert scan(tmp_path).left_out() == "1 without ending, 1 .cr2, 1 .eps, 2 .txt"
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"^here: found no images in .* \(only .*2 \.txt\)"):
        list_images(tmp_path, "here")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"here: found no folder .* did you mean 'photos'"):
        list_images(tmp_path / "photo", "here")


def test_links_inside_the_set_are_followed_to_files_and_folders(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "train" / "b").symlink_to("a")
    (tmp_path / "train" / "c.png").symlink_to("a/1.png")
    listing = scan(tmp_path / "train", tmp_path)
    assert listing.names == ("a/1.png", "b/1.png", "c.png")
    assert not listing.faults


def test_links_elsewhere_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = save(tmp_path / "out" / "1.png").parent
    root = save(tmp_path / "in" / "1.png").parent
    (root / "far").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "lost.png").symlink_to(root / "nothing.png")
    kinds = {Path(fault.file).name: fault.kind for fault in scan(root).faults}
    assert kinds == {
        "far": "link out of the data set",
        "loop": "link in a loop",
        "lost.png": "broken link",
    }
    with pytest.raises(DataError, match=r"in/far: link out of the data set: leads to .*2 more"):
        list_images(root, "root")
    monkeypatch.setenv(LINKS_VARIABLE, "1")
    assert scan(root).names == ("1.png", "far/1.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    assert [fault.kind for fault in scan(tmp_path).faults] == ["unreadable folder"]


@pytest.mark.parametrize(
    ("name", "there", "what"),
    [
        (unicodedata.normalize("NFD", "é.jpg"), "é.jpg", "Unicode form"),
        ("A.JPG", "a.jpg", "upper and lower case"),
        ("sub\\a.jpg", "sub/a.jpg", "backslashes"),
        ("a b.jpg", "a  b.jpg", "blanks"),
        ("a%20b.jpg", "a b.jpg", "percent encoding"),
        ("images/a.jpg", "a.jpg", "the leading folder"),
    ],
)
def test_a_name_that_is_almost_right_is_named(name: str, there: str, what: str) -> None:
    near = NearNames(["other.jpg", there])
    assert near.hint(name) == f"; there is {there!r}, which differs in {what}"
    assert near.hint("unlike.jpg") == ""


def test_images_are_paired_with_masks_by_folder_and_stem(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/a.jpg", "a.b.jpg", "B.jpg"):
        save(tmp_path / "images" / name)
    for name in ("a.png", "sub/a.tif", "a.b.png", "b.png"):
        save(tmp_path / "masks" / name)
    paired = pair_by_stem(scan(tmp_path / "images"), scan(tmp_path / "masks"))
    found = [tuple(path.name for path in pair) for pair in paired.pairs]
    assert found == [("a.b.jpg", "a.b.png"), ("a.jpg", "a.png"), ("a.jpg", "a.tif")]
    assert [path.name for path in paired.unused] == ["b.png"]
    (fault,) = paired.faults
    assert (fault.kind, Path(fault.file).name) == ("missing mask", "B.jpg")
    assert "there is 'b', which differs in upper and lower case" in fault.detail


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/a.png", "masks/a.png"):
        save(tmp_path / name)
    (fault,) = pair_by_stem(scan(tmp_path / "images"), scan(tmp_path / "masks")).faults
    assert fault.kind == "duplicate image name"
    assert fault.file.endswith("a.png")
    assert "a.jpg" in fault.detail


def test_names_are_ordered_as_timm_orders_them() -> None:
    assert natural_order(["n10", "n9", "B", "a", "²"]) == ["a", "B", "n9", "n10", "²"]
