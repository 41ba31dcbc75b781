"""If one of these fails, an image that can't be used is used, or ends or changes a run unseen."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spanet_lightning import cli, tracking
from spanet_lightning.cache import CACHE_VARIABLE, cache_folder
from spanet_lightning.data import (
    CocoDataModule,
    ImageClassificationDataModule,
    SegmentationFoldersDataModule,
    bad_samples,
    decode,
)
from spanet_lightning.data.bad_samples import FILE
from spanet_lightning.data.check import Measured, measured
from spanet_lightning.data.faults import SampleError, UnreadableImageError
from spanet_lightning.data.images import read_image
from spanet_lightning.data.masks import read_codes
from spanet_lightning.errors import ConfigError, DataError
from tests import dense_sets
from tests.helpers import UNTRACKED, images, refused


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 24, height: int = 16) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header promises an image, and whose data is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")]
    )


JPEG, PNG = encoded(photo(), "JPEG"), encoded(photo(), "PNG")

UNUSABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "found an empty file"),
    "zeros": (bytes(2000), "found zeros alone"),
    "html": (b"<!DOCTYPE html>\n<html>404</html>", "a page of HTML"),
    "text": (b"no image at all", "other contents"),
    "cut.jpg": (JPEG[:-50], "truncated"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated"),
    "flipped header.jpg": (flipped(JPEG, 1), "other contents"),
    "floats": (encoded(Image.new("F", (9, 9)), "TIFF"), "floats"),
    "integers": (encoded(Image.new("I", (9, 9)), "TIFF"), "integers of 32 bits"),
    # Its decoder would start Ghostscript on it.
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "other"),
    "bomb": (bomb(9500, 9500), "9500×9500 px; the limit is 89478485 pixels"),
    "large bomb": (bomb(60000, 60000), "the limit is 89478485 pixels"),
}


@pytest.fixture(params=list(UNUSABLE))
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    content, says = UNUSABLE[request.param]
    path = tmp_path / "photo.jpg"  # whatever it is: contents decide, not names
    path.write_bytes(content)
    return path, says


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_reader_refuses_what_it_can_not_use(
    unusable: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, says = unusable
    if "limit" in says:  # refused before anything is decoded
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("was decoded"))
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(UnreadableImageError) as error:
        read_image(path, index=7)
    assert str(error.value).startswith(f"image {path} (index 7): ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    fault = measured(path)
    assert not isinstance(fault, Measured)
    assert says in fault.detail
    if says not in ("floats", "integers of 32 bits"):
        with pytest.raises(SampleError, match="index 3"):
            read_codes(path, by_colour=False, index=3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_classifier_refuses_the_same(unusable: tuple[Path, str], tmp_path: Path) -> None:
    content, says = unusable[0].read_bytes(), unusable[1]
    root = images(tmp_path / "set")
    (root / "train" / "cat" / "1.png").write_bytes(content)
    data = ImageClassificationDataModule(str(root), image_size=32, num_workers=0)
    data.setup("fit")
    with pytest.raises(DataError) as error:
        data._datasets["train_split"][1]
    assert f"image {root / 'train/cat/1.png'} (index 1): " in str(error.value)
    assert says.partition(";")[0] in str(error.value)


def test_the_limit_of_pixels_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    monkeypatch.setenv(decode.PIXELS_VARIABLE, str(24 * 16))
    assert read_image(path).shape == (3, 16, 24)
    monkeypatch.setenv(decode.PIXELS_VARIABLE, str(24 * 16 - 1))
    with pytest.raises(UnreadableImageError, match=r"24×16 px; the limit is 383 pixels"):
        read_image(path)
    monkeypatch.setenv(decode.PIXELS_VARIABLE, "many")
    with pytest.raises(ConfigError, match="SPANET_MAX_PIXELS: got 'many'"):
        read_image(path)
    # Above what Pillow itself refuses.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv(decode.PIXELS_VARIABLE, "1000")
    assert read_image(path).shape == (3, 16, 24)


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGBA = np.dstack([GREY, GREY[::-1], GREY.T, GREY])
CMYK = Image.fromarray(RGBA[..., :3]).convert("CMYK")


def _first(kind: str) -> bytes:
    frames = [Image.fromarray(np.full((9, 9, 3), value, np.uint8)) for value in (10, 200)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def _palette() -> bytes:
    image = Image.fromarray(GREY).convert("P")
    return encoded(image, "PNG", transparency=bytes(range(256)))


USABLE: dict[str, tuple[bytes, np.ndarray]] = {
    "grey": (encoded(Image.fromarray(GREY), "PNG"), np.dstack([GREY] * 3)),
    # The upper byte; Pillow's own conversion makes everything above 255 white.
    "grey of 16 bits": (
        encoded(Image.fromarray(GREY.astype(np.uint16) * 256 + 99), "PNG"),
        np.dstack([GREY] * 3),
    ),
    "grey of 16 bits, TIFF": (
        encoded(Image.fromarray(GREY.astype(np.uint16) * 256 + 99), "TIFF"),
        np.dstack([GREY] * 3),
    ),
    "alpha": (encoded(Image.fromarray(RGBA), "PNG"), RGBA[..., :3]),
    "palette": (encoded(Image.fromarray(GREY).convert("P"), "PNG"), np.dstack([GREY] * 3)),
    "palette with alpha": (_palette(), np.dstack([GREY] * 3)),
    "bits": (
        encoded(Image.fromarray(GREY > 99), "PNG"),
        np.dstack([np.where(GREY > 99, 255, 0)] * 3),
    ),
    "CMYK": (encoded(CMYK, "TIFF"), np.array(CMYK.convert("RGB"))),
    "animated GIF": (_first("GIF"), np.full((9, 9, 3), 10)),
    "animated WebP": (_first("WEBP"), np.full((9, 9, 3), 10)),
    "animated PNG": (_first("PNG"), np.full((9, 9, 3), 10)),
    "pages of TIFF": (_first("TIFF"), np.full((9, 9, 3), 10)),
}


@pytest.mark.parametrize("name", USABLE)
def test_what_becomes_rgb_and_how(name: str, tmp_path: Path) -> None:
    content, expected = USABLE[name]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    found = read_image(path).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)
    assert isinstance(measured(path), Measured)


def test_a_cmyk_jpeg_of_adobe_is_not_inverted(tmp_path: Path) -> None:
    white = Image.new("CMYK", (16, 16))  # no ink
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(white, "JPEG"))
    assert b"Adobe" in path.read_bytes()[:200]
    assert int(read_image(path).min()) == 255


# -- the policy


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SKIP = {"on_bad_sample": "skip"}


def folders(tmp_path: Path, **options: Any) -> tuple[ImageClassificationDataModule, list[Path]]:
    root = images(tmp_path / "folders", per_class=6)
    bad = [root / "train/cat/2.png", root / "train/dog/5.png", root / "val/dog/0.png"]
    settings = {"image_size": 32, "batch_size": 2, "num_workers": 0, "max_bad_samples": 0.3}
    return ImageClassificationDataModule(str(root), **settings | options), bad


def coco(tmp_path: Path, **options: Any) -> tuple[CocoDataModule, list[Path]]:
    root = dense_sets.coco(tmp_path / "coco", train=8, val=4)
    bad = [root / "train/002.jpg", root / "train/005.jpg", root / "val/010.jpg"]
    settings = {**dense_sets.COCO_FOLDERS, "max_bad_samples": 0.3, "masks": True}
    settings |= {"long_side": 64, "short_side": 48, "short_sides": (48,)}
    return CocoDataModule(str(root), **settings | options), bad


def masks(tmp_path: Path, **options: Any) -> tuple[SegmentationFoldersDataModule, list[Path]]:
    root = dense_sets.masks(tmp_path / "masks", train=8, val=4)
    bad = [
        root / "images/training/2.jpg",
        root / "annotations/training/5.png",
        root / "images/validation/10.jpg",
    ]
    settings = {"crop_size": 32, "short_side": 32, "long_side": 64, "num_workers": 0}
    settings |= {"max_bad_samples": 0.3, "batch_size": 2}
    return SegmentationFoldersDataModule(str(root), **settings | options), bad


MAKERS: dict[str, Callable[..., Any]] = {"folders": folders, "coco": coco, "masks": masks}
SIZES = {"folders": (12, 12), "coco": (8, 4), "masks": (8, 4)}


@pytest.fixture(params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def everything(data: Any) -> list[Any]:
    data.setup("fit")
    return [*data.train_dataloader(), *data.val_dataloader()]


def test_by_default_the_first_ends_the_run_by_name_and_index(kind: str, tmp_path: Path) -> None:
    data, bad = MAKERS[kind](tmp_path)
    spoil(bad[2])
    with pytest.raises(DataError) as error:
        everything(data)
    index = {"folders": 6, "coco": 1, "masks": 0}[kind]  # "10" before "9"
    assert f"{bad[2]} (index {index})" in str(error.value)
    assert data.bad_samples.found == {}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_drops_and_never_substitutes(kind: str, num_workers: int, tmp_path: Path) -> None:
    data, bad = MAKERS[kind](tmp_path, on_bad_sample="skip", num_workers=num_workers)
    for path in bad:
        spoil(path)
    epochs = [everything(data), everything(data)]
    train, val = data.bad_samples.found.values()
    sizes = SIZES[kind]
    assert (train.size, val.size) == sizes
    assert (len(train.bad), len(val.bad)) == (2, 1)
    names = {Path(sample.file).stem for sample in [*train.bad, *val.bad]}
    assert names == {path.stem for path in bad}
    for batches in epochs:
        if kind == "folders":
            evaluated = sum(len(labels) for _, labels in list(data.val_dataloader()))
            assert evaluated == sizes[1] - 1
            continue
        paths = [path for batch in batches for path in batch.paths]
        assert not {Path(path).stem for path in paths} & names
        assert len(set(paths)) == len(paths)
        assert len(list(data.val_dataloader())) == sizes[1] - 1
    assert data.bad_samples.line().endswith(f"1 of {sizes[1]} of {list(data.bad_samples.found)[1]}")


def test_order_and_batches_are_as_if_the_bad_had_never_been_there(tmp_path: Path) -> None:
    data, bad = folders(tmp_path, on_bad_sample="skip", batch_size=3)
    for path in bad:
        spoil(path)
    skipped = [labels.tolist() for _, labels in everything(data)]
    for path in bad:
        path.unlink()
    clean = ImageClassificationDataModule(data.root, image_size=32, batch_size=3, num_workers=0)
    assert skipped == [labels.tolist() for _, labels in everything(clean)]


def test_too_many_are_refused_and_one_always_may_be(kind: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    data, bad = MAKERS[kind](tmp_path / "one", on_bad_sample="skip", max_bad_samples=0.0)
    spoil(bad[0])
    data.setup("fit")
    data, bad = MAKERS[kind](tmp_path / "two", on_bad_sample="skip", max_bad_samples=0.0)
    spoil(bad[0])
    spoil(bad[1])
    with pytest.raises(DataError, match=r"got 0, at most 1 of the .*, but 2") as error:
        data.setup("fit")
    assert f"{bad[0]} (index " in str(error.value)
    data, bad = MAKERS[kind](tmp_path / "all", on_bad_sample="skip", max_bad_samples=0.99)
    for path in (*bad[0].parent.rglob("*"), *bad[0].parent.parent.rglob("*.png")):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(DataError, match="at most"):
        data.setup("fit")


def test_a_second_run_reads_no_image_until_a_file_changes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bad = MAKERS[kind](tmp_path, on_bad_sample="skip")
    spoil(bad[0])
    data.setup("fit")
    first = data.bad_samples.found

    def again() -> Any:
        other, _ = MAKERS[kind](tmp_path / f"other{len(list(tmp_path.iterdir()))}", **SKIP)
        other.root = data.root
        other.setup("fit")
        return other.bad_samples.found

    with monkeypatch.context() as patch:
        patch.setattr(bad_samples, "_read", lambda *_: pytest.fail("read again"))
        assert again() == first
    spoil(bad[1])
    assert len(next(iter(again().values())).bad) == 2
    cache = cache_folder()
    for file in cache.rglob("*.json"):
        file.write_text('[["broken"]]')
    assert len(next(iter(again().values())).bad) == 2


def test_a_cache_that_can_not_be_written_costs_a_second_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    data, bad = folders(tmp_path, on_bad_sample="skip")
    spoil(bad[0])
    data.setup("fit")
    assert len(data.bad_samples.found["train"].bad) == 1


def test_an_image_that_breaks_later_ends_the_run(tmp_path: Path) -> None:
    data, bad = folders(tmp_path, on_bad_sample="skip")
    spoil(bad[0])  # index 2, so what follows has another place
    data.setup("fit")
    spoil(bad[1])
    with pytest.raises(DataError, match=r"dog/5\.png \(index 11\)"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--data.on_bad_sample=skp"],
            "data.on_bad_sample: got 'skp', expected one of 'fail', 'sk",
        ),
        (["--data.max_bad_samples=2"], "data.max_bad_samples: got 2.0, expected a share"),
        (["--data.max_bad_samples=-0.1"], "data.max_bad_samples: got -0.1, expected a share"),
        (
            ["--data.on_bad_sample=skip", "--data.dataset=wds/x"],
            "data.on_bad_sample: got 'skip', expected 'fail' with dataset='wds/x'",
        ),
        (["--data.on_bad_sample=skip"], "data.max_bad_samples: got 0.01, at most 1 of the 12"),
    ],
)
def test_on_the_command_line(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images(Path("set"), per_class=6)
    spoil(root / "train/cat/2.png")
    spoil(root / "train/cat/3.png")
    options = ["--data=ImageClassificationDataModule", f"--data.root={root}"]
    options += ["--data.image_size=32", "--data.batch_size=12", "--data.num_workers=0"]
    assert says in refused(["fit", *UNTRACKED, *options, *args], capsys)


@pytest.mark.filterwarnings("ignore:.*number of training batches")
def test_a_run_lists_what_it_leaves_out(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = images(Path("set"), per_class=6)
    spoil(root / "train/cat/2.png")
    options = ["--data=ImageClassificationDataModule", f"--data.root={root}"]
    options += ["--data.image_size=32", "--data.batch_size=2", "--data.num_workers=0"]
    options += ["--data.on_bad_sample=skip", "--name=run", "--trainer.max_epochs=2"]
    own = '[{"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}, "MLflowLogger"]'
    with caplog.at_level("INFO"):
        cli.main(["fit", *UNTRACKED[:-1], f"--trainer.logger={own}", *options])
    rows = Path("runs/run", FILE).read_text().splitlines()
    assert rows[0] == "split,index,file,reason"
    assert rows[1].startswith("train,2,set/train/cat/2.png,")
    assert len(rows) == 2
    lines = [line for line in caplog.messages if line.startswith("Bad samples left out")]
    assert lines == ["Bad samples left out: 1 of 12 of train, 0 of 12 of val"] * 2
    (metrics,) = Path("csv").rglob("metrics.csv")
    assert "data/bad_samples/train" in metrics.read_text()
    client = tracking.connect(tracking.DEFAULT_URI)
    experiment = client.get_experiment_by_name(tracking.DEFAULT_EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["data/bad_samples/train"] == 1
    listed = client.download_artifacts(run.info.run_id, FILE)
    assert Path(listed).read_text() == Path("runs/run", FILE).read_text()


def test_an_annotated_size_is_part_of_what_is_remembered(tmp_path: Path) -> None:
    data, bad = coco(tmp_path, on_bad_sample="skip", masks=False)
    spoil(bad[0])
    data.setup("fit")

    def change(document: Any) -> None:
        document["images"][0]["width"] += 1

    dense_sets.edit(Path(data.root), "train", change)
    again, _ = coco(tmp_path / "other", on_bad_sample="skip", masks=False)
    again.root = data.root
    again.setup("fit")
    reasons = [sample.reason for sample in again.bad_samples.found["train"].bad]
    assert len(reasons) == 2
    assert "the size in its annotations" in reasons[0]


PROCESS = """
import sys
import torch.distributed as dist
from spanet_lightning.data import ImageClassificationDataModule, bad_samples

rank, root, meet = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
read = []
real = bad_samples._read
bad_samples._read = lambda share, *rest: (read.append(len(share)), list(real(share, *rest)))[1]
data = ImageClassificationDataModule(root, image_size=32, on_bad_sample="skip", max_bad_samples=0.3)
data.setup("fit")
print(read, [sample.number for sample in data.bad_samples.found["train"].bad])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_share_the_look_and_agree(tmp_path: Path) -> None:
    data, bad = folders(tmp_path)
    for path in bad:
        spoil(path)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    # A cache of its own for one of them: who remembers and who does not must not differ.
    envs = [{**env, CACHE_VARIABLE: str(tmp_path / f"cache{rank}")} for rank in (0, 1)]
    for expected in ("[6, 6] [2, 11]", "[] [2, 11]"):
        meet = tmp_path / f"meet{expected[1]}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(rank), data.root, str(meet)],
                env=envs[rank],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        printed = [process.communicate(timeout=120)[0].strip() for process in running]
        assert [line.splitlines()[-1] for line in printed] == [expected, expected]
