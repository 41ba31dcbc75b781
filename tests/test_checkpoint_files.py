"""If one of these fails, a file with weights runs code here, or one that people have isn't read."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import hashlib
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from spanet_lightning import ClassificationTask, SPANetV2, TimmBackbone, app, cli, load_official
from spanet_lightning.backbones import checkpoint_file
from spanet_lightning.backbones.weights import read_weights
from spanet_lightning.cache import CACHE_VARIABLE
from spanet_lightning.errors import CheckpointError, ConfigError
from tests.helpers import UNTRACKED, refused
from tests.parity import schema

OFFICIAL = schema.v2((1, 1, 2, 1), (16, 32, 64, 96), 10, (8, 4, 2, 1))


def official(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the state dict of an official `test` variant of the second generation."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in OFFICIAL.items()}


def model(**changes: Any) -> SPANetV2:
    return SPANetV2("test", **({"num_classes": 10, "img_size": 32} | changes))


def stem(weights: SPANetV2) -> torch.Tensor:
    return weights.stem.conv.weight.detach()


STEM = "downsample_layers.0.conv.weight"


# -- what people store beside weights, in every format


class Mode(enum.Enum):
    TRAIN = 1


@pytest.fixture
def foreign():
    """An instance of a class that the reader can't import, as mmengine's in its checkpoints."""
    module = types.ModuleType("mmengine_absent")
    exec("class HistoryBuffer:\n    def __init__(self): self.values = [1.0]", module.__dict__)  # noqa: S102
    module.HistoryBuffer.__module__ = "mmengine_absent"
    sys.modules["mmengine_absent"] = module
    yield module.HistoryBuffer()
    sys.modules.pop("mmengine_absent", None)


def save(content: Any, path: str, how: str) -> None:
    if how == "pickle":
        Path(path).write_bytes(pickle.dumps(content))
    elif how == "module":
        torch.save(content, path)
    else:
        zipped, protocol = how.split()
        torch.save(
            content,
            path,
            pickle_protocol=int(protocol),
            _use_new_zipfile_serialization=zipped == "zip",
        )


@pytest.mark.parametrize("how", ["zip 2", "zip 5", "legacy 2", "legacy 4"])
def test_files_of_other_trainers_are_read(how: str, foreign: Any) -> None:
    state = official()
    content = {
        "state_dict": collections.OrderedDict(state),
        "args": argparse.Namespace(model="spanetv2", output=Path("runs")),
        "message_hub": {"loss": foreign, "info": collections.defaultdict(list, {"a": [1]})},
        "metric": np.float64(83.4),
        "history": [np.arange(6).reshape(2, 3), collections.deque([1])],
        "when": datetime.datetime.now(tz=datetime.UTC),
        "mode": {Mode.TRAIN: {1, 2}, (0, 1): frozenset([1])},
        "rng": [np.random.RandomState(0), torch.device("cpu"), torch.float16, b"raw"],
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    }
    save(content, "trained.pth.tar", how)
    sys.modules.pop("mmengine_absent")
    report = load_official(net := model(), "trained.pth.tar")
    assert len(report.used) == len(state)
    assert torch.equal(stem(net), state[STEM])
    assert "mmengine_absent" not in sys.modules


def test_types_and_layouts_of_tensors() -> None:
    tensors = {
        "t": torch.randn(3, 4).t(),
        "half": torch.randn(2, 2).bfloat16()[:, 1],
        "empty": torch.zeros(0, 3),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    for how in ("zip 2", "legacy 2"):
        if how == "legacy 2":
            del tensors["float8"]  # torch itself does not read what it writes there
        save(tensors, "t.pth", how)
        content, _ = checkpoint_file.read("t.pth")
        for key, value in tensors.items():
            found = content[key]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(found.float(), value.float())


@pytest.mark.parametrize("how", ["zip 2", "pickle", "zip 5"])
def test_weights_as_numpy_arrays(how: str) -> None:
    save({"model": {k: v.numpy() for k, v in official().items()}}, "np.pkl", how)
    load_official(net := model(), "np.pkl")
    assert torch.equal(stem(net), official()[STEM])


def test_a_model_that_was_pickled_whole() -> None:
    torch.save({"epoch": 3, "model": model()}, "whole.pt")
    load_official(net := model(), "whole.pt")
    expected = torch.load("whole.pt", weights_only=False)["model"]
    assert torch.equal(stem(net), stem(expected))


# -- code


class Call:
    """Calls a function when it is unpickled by anything but us."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


EVIL = Call(os.system, "touch pwned")


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    yield
    assert not Path("pwned").exists()
    assert "antigravity" not in sys.modules


CALLS = [
    (os.system, "touch pwned"),
    (eval, "open('pwned', 'w')"),
    (exec, "open('pwned', 'w')"),
    (subprocess.Popen, ["touch", "pwned"]),
    (__import__, "antigravity"),
    (open, "pwned", "w"),
    (Path.touch, Path("pwned")),
    (torch.load, "pwned"),
    (torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/x"),
    (np.save, "pwned", 1),
    (print, "hello"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
@pytest.mark.parametrize("how", ["zip 2", "zip 5", "legacy 2", "pickle"])
def test_a_pickle_that_calls_something_is_refused(call: Any, how: str) -> None:
    save({"state_dict": official(), "x": Call(*call)}, "evil.pth", how)
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused, .*could run code"):
        read_weights("evil.pth")


STACK = b"\x80\x04"  # protocol 4
SYSTEM = b"\x8c\x02os\x8c\x06system\x93"
TOUCH = b"\x8c\x0btouch pwned"


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch pwned'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch pwned'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch pwned'\no.",  # OBJ
        STACK + SYSTEM + TOUCH + b"\x85R.",  # STACK_GLOBAL, REDUCE
        STACK + SYSTEM + TOUCH + b"\x85\x81.",  # NEWOBJ
        STACK + SYSTEM + TOUCH + b"\x85}\x92.",  # NEWOBJ_EX
        STACK + b"\x8c\x07pathlib\x8c\x09os.system\x93" + TOUCH + b"\x85R.",  # through a module
        STACK + b"\x8c\x05torch\x8c\x09os.system\x93" + TOUCH + b"\x85R.",
        # getattr(os, 'system')('touch pwned')
        STACK + b"\x8c\x08builtins\x8c\x07getattr\x93\x8c\x08builtins\x8c\x02os\x93"
        b"\x8c\x06system\x86R" + TOUCH + b"\x85R.",
        # what an object returns is called; a stand-in in the place of a function
        STACK + b"\x8c\x01a\x8c\x01B\x93)R" + TOUCH + b"\x85R.",
        STACK + b"\x8c\x0dtorch._tensor\x8c\x16_rebuild_from_type_v2\x93("
        + SYSTEM + b"N" + TOUCH + b"\x85NtR.",
        # BUILD: attributes of a function, of a class, of a tensor's class
        STACK + b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93N}\x8c\x0c__defaults__)s\x86b.",
        STACK + b"\x8c\x05torch\x8c\x06Tensor\x93N}\x8c\x05shape)s\x86b.",
        STACK + b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93N}\x8c\x05items)s\x86b.",
        b"\x82\x01.",  # EXT1
        b"P1\n.",  # PERSID
        STACK + b"\x8c\x05hello\x94Q.",  # BINPERSID
        b"(K\x01K\x02",  # no end
        b".",
        b"0.",
        b"}(]K\x01u.",  # a list as a key
    ],
)  # fmt: skip
def test_opcodes_have_no_effect(data: bytes) -> None:
    shape, items = torch.Tensor.shape, collections.OrderedDict.items
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    Path("evil.pth").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        read_weights("evil.pth")
    assert "\n" not in str(error.value)
    assert torch.Tensor.shape is shape
    assert collections.OrderedDict.items is items
    assert torch._utils._rebuild_tensor_v2.__defaults__ is defaults


@pytest.mark.parametrize(
    "data",
    [
        b"Nr\xff\xff\xff\x7f.",  # the two billionth reference: C's unpickler fills 32 GB
        STACK + b"\x96" + struct.pack("<Q", 1 << 40) + b"x.",  # BYTEARRAY8 of a terabyte
        STACK + b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",  # BINBYTES8
        b"\x8b\xff\xff\xff\x7f1.",  # LONG4
        b"]" + b"\x85" * 100_000 + b".",
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + b"}."
        b"}." + pickle.dumps(["0"], 2) + struct.pack("<q", 1 << 60),
    ],
)
def test_no_file_takes_more_than_it_is(data: bytes) -> None:
    Path("bomb.pth").write_bytes(data)
    start = time.process_time()
    with pytest.raises(CheckpointError):
        read_weights("bomb.pth")
    assert time.process_time() - start < 2


def test_tensors_that_are_larger_than_their_file_are_refused() -> None:
    memory = torch.zeros(4).untyped_storage()
    for size, stride, offset in (
        ((1 << 40,), (1,), 0),
        ((1 << 40,), (0,), 0),
        ((4,), (1,), 3),
        ((2, 2), (1,), 0),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
    ):
        place = (memory, offset, size, stride, False, {}, torch.float32, None)
        fake = Call(torch._utils._rebuild_tensor_v3, *place)
        torch.save({STEM: fake}, "big.pth")
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            read_weights("big.pth")
    with zipfile.ZipFile("zip.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N" * 10_000_000 + b".")
    with pytest.raises(CheckpointError, match="compressed zip"):
        read_weights("zip.pth")


READERS = {
    "fit --ckpt_path": ["fit", *UNTRACKED, "--ckpt_path=evil.ckpt"],
    "test": ["test", *UNTRACKED, "--ckpt_path=evil.ckpt"],
    "model.weights": ["fit", *UNTRACKED, "--model.weights=evil.ckpt"],
    "convert": ["convert", "evil.ckpt", "out.safetensors"],
    "export": ["export", "evil.ckpt", "--output=out.safetensors", "--format=safetensors"],
    "export --weights": ["export", "test_spanet", "--output=out.safetensors",
                         "--format=safetensors", "--weights=evil.ckpt"],
    "analyze": ["analyze", "spectrum", "--model=evil.ckpt", "--images=sample"],
    "analyze NAME@": ["analyze", "spectrum", "--model=test_spanet@evil.ckpt", "--images=sample"],
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_no_command_runs_a_checkpoint(reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"state_dict": {"head.weight": torch.zeros(2, 2)}, "x": EVIL}
    torch.save(content | {"pytorch-lightning_version": "2.6.6"}, "evil.ckpt")
    main = cli.main if READERS[reader][0] in ("fit", "test") else app.main
    error = refused(READERS[reader], capsys, main)
    assert "evil.ckpt" in error
    assert "could run code" in error
    args = [arg.replace("evil.ckpt", "http://127.0.0.1:9/evil.ckpt") for arg in READERS[reader]]
    assert "expected" in refused(args, capsys, main)  # and no address of http is asked


def test_a_task_is_rebuilt_neither_from_code_nor_from_an_address() -> None:
    for how in ("zip 2", "legacy 2", "pickle"):
        save({"state_dict": {}, "x": EVIL}, "evil.ckpt", how)
        with pytest.raises(CheckpointError, match=r"evil\.ckpt: refused"):
            ClassificationTask.load_from_checkpoint("evil.ckpt")
    with pytest.raises(ConfigError, match="weights_only: got False"):
        ClassificationTask.load_from_checkpoint("evil.ckpt", weights_only=False)
    with pytest.raises(CheckpointError, match="expected a local file"):
        ClassificationTask.load_from_checkpoint("http://127.0.0.1:9/evil.ckpt")


# -- names and sets


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "ema_model.", "module.model._orig_mod.",
            "_orig_mod.module.backbone.", "backbone.model.", "encoder.", "my.own.net."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off(prefix: str) -> None:
    state = official()
    report = load_official(net := model(), {prefix + k: v for k, v in state.items()})
    assert set(report.used) == {prefix + k for k in state}
    assert torch.equal(stem(net), state[STEM])


@pytest.mark.parametrize("seed", range(4))
def test_prefixes_in_any_order_on_any_subset(seed: int) -> None:
    draw = random.Random(seed)
    names = ["module.", "_orig_mod.", "model.", "backbone."]
    state = {"".join(draw.sample(names, draw.randrange(5))) + k: v for k, v in official().items()}
    report = load_official(model(), state)
    assert set(report.used) == set(state)


def test_wrappers_inside_of_a_name_are_taken_off() -> None:
    state = {k.replace(".0.", ".0._orig_mod.", 1): v for k, v in official().items()}
    assert len(load_official(model(), state).used) == len(state)


FIRST, SECOND = official(1), official(2)
MMENGINE = {"state_dict": SECOND, "message_hub": {},
            "ema_state_dict": {"steps": torch.tensor(3)} | {f"module.{k}": v
                                                            for k, v in FIRST.items()}}  # fmt: skip
TWO_SETS = {
    "timm": {"state_dict": FIRST, "state_dict_ema": SECOND, "epoch": 3},
    "deit": {"model": FIRST, "model_ema": SECOND, "optimizer": {}},
    "convnext": {"model": FIRST, "model_ema": {f"module.{k}": v for k, v in SECOND.items()}},
    "one dictionary": FIRST | {f"ema.module.{k}": v for k, v in SECOND.items()},
    "nested": {"model": {"state_dict": FIRST}, "ema": {"state_dict": SECOND}},
    # These call the average their state dict.
    "mmengine": MMENGINE,
    "lightning": {"state_dict": SECOND, "current_model_state": FIRST,
                  "averaging_state": {"n_averaged": torch.tensor(2)}},
}  # fmt: skip


@pytest.mark.parametrize("kind", TWO_SETS)
def test_of_two_sets_the_wanted_one_is_taken(kind: str) -> None:
    exchanged = kind in ("mmengine", "lightning")
    for wanted, expected in (
        (None, SECOND if exchanged else FIRST),
        ("model", FIRST),
        ("ema", SECOND),
    ):
        report = load_official(net := model(), TWO_SETS[kind], wanted)
        assert torch.equal(stem(net), expected[STEM]), wanted
        other = "model" if expected is SECOND else "ema"
        assert f"(weights_set: {other})" in str(report)


def test_the_only_set_is_taken_and_named() -> None:
    assert "weights set: model_ema (EMA)" in str(load_official(model(), {"model_ema": FIRST}))
    with pytest.raises(CheckpointError, match=r"got 'model', but it holds only model_ema \(EMA\)"):
        load_official(model(), {"model_ema": FIRST}, "model")
    with pytest.raises(CheckpointError, match="got 'ema', but it holds only state dict"):
        load_official(model(), FIRST, "ema")
    with pytest.raises(ConfigError, match="weights_set: got 'best'"):
        load_official(model(), FIRST, "best")  # type: ignore[arg-type]


# -- what went wrong, and what helps


def test_files_that_are_no_checkpoints_are_named_by_what_they_are() -> None:
    torch.save(FIRST, "whole.pth")
    whole = Path("whole.pth").read_bytes()
    save(FIRST, "legacy.pth", "legacy 2")
    Path("folder").mkdir()
    with zipfile.ZipFile("script.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"N.")
        archive.writestr("model/constants.pkl", b").")
    files = {
        "empty.pth": b"",
        "cut.pth": whole[: len(whole) // 2],
        "legacy_cut.pth": Path("legacy.pth").read_bytes()[:-9],
        "page.pth": b"<!DOCTYPE html><html>",
        "lfs.pth": b"version https://git-lfs.github.com/spec/v1\n",
        "zipped.pth.gz": b"\x1f\x8b\x08\x00",
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
    }
    for name, data in files.items():
        Path(name).write_bytes(data)
    for name, words in {
        "absent.pth": "no such checkpoint file",
        "ckpt/spanet_s24_init.pth.tar": "ImageNet checkpoint of spanet_s without its frozen masks",
        "folder": "is a folder",
        "script.pt": "TorchScript",
        "empty.pth": "is empty",
        "page.pth": "a web page",
        "lfs.pth": "git lfs pull",
        "zipped.pth.gz": "gzip",
        "cut.pth": "is damaged: it is cut off",
        **dict.fromkeys(("legacy_cut.pth", "cut.safetensors"), "not a readable"),
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(name)) as error:
            read_weights(name)
        assert words in str(error.value)


def test_a_flipped_bit_in_a_tensor_is_found() -> None:
    torch.save(FIRST, "damaged.pth")
    content = bytearray(Path("damaged.pth").read_bytes())
    content[len(content) // 2] ^= 1
    Path("damaged.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.pth: is damaged"):
        read_weights("damaged.pth")
    with pytest.raises(CheckpointError, match=r"damaged\.pth: is damaged: its part"):
        checkpoint_file.verify("damaged.pth")


def test_contents_without_weights_are_described() -> None:
    with pytest.raises(CheckpointError, match=r"no tensors.*'epoch', 'optimizer'.*state_dict\(\)"):
        load_official(model(), {"epoch": 3, "optimizer": {}})
    with pytest.raises(CheckpointError, match=r"'cls_token'.*looks like a vision transformer"):
        load_official(model(), {"cls_token": torch.zeros(1)})


# -- through timm


@pytest.mark.parametrize("kind", ["official", "run"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 10},
        {"num_classes": 3},
        {"num_classes": 0, "img_size": 64},
        {"features_only": True},
        {"features_only": True, "out_indices": (0, 1)},
    ],
    ids=str,
)
def test_timm_loads_checkpoints(
    kind: str, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "official":
        torch.save({"state_dict": official()}, "weights.pth")
    else:
        load_official(net := model(), official())
        own = {f"backbone.{k}": v for k, v in net.state_dict().items()}
        torch.save({"state_dict": own, "hyper_parameters": {}}, "weights.pth")
    options = {"img_size": 32} | changes
    built = timm.create_model("test_spanetv2", checkpoint_path="weights.pth", **options)
    inner = built.model if "features_only" in changes else built
    assert torch.equal(stem(inner), official()[STEM])
    if changes.get("num_classes") == 3:
        assert "head re-initialised, 10 → 3 classes" in caplog.text
    other = timm.create_model("test_spanetv2", **options)
    load_official(other, "weights.pth")
    x = torch.randn(1, 3, 32, 32)
    first, second = built.eval()(x), other.eval()(x)
    if changes.get("num_classes") != 3:
        assert all(map(torch.equal, first, second))
    built.load_state_dict(other.state_dict())  # its own weights, as before
    with pytest.raises(CheckpointError, match="expected a SPANet"):
        built.load_state_dict({"conv1.weight": torch.zeros(1)})


def test_another_model_of_timms_takes_its_own_names() -> None:
    net, other = (TimmBackbone("resnet10t", num_classes=n) for n in (10, 3))
    report = load_official(other, {f"module.{k}": v for k, v in net.model.state_dict().items()})
    assert torch.equal(other.model.layer1[0].conv1.weight, net.model.layer1[0].conv1.weight)
    assert set(report.missing.values()) == {"head re-initialised, 10 → 3 classes"}
    run = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    assert len(load_official(net, {"state_dict": run}).used) == len(run)
    with pytest.raises(CheckpointError, match="has no place in the resnet10t"):
        load_official(net, official())


# -- downloads


ADDRESS = "https://example.org/w.safetensors"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str]:
    """Serve weights at every address of https; return what is asked for, and their hash."""
    data = safetensors.torch.save(dict(model().state_dict()))
    asked: list[str] = []

    class Answer(io.BytesIO):
        def info(self) -> Any:
            return {}

    def answer(request: Any) -> Answer:
        asked.append(request.full_url)
        if "broken" in request.full_url:
            raise ConnectionResetError("connection reset")
        found = Answer(data)
        found.info = lambda: types.SimpleNamespace(get_all=lambda _: None)  # type: ignore[method-assign]
        return found

    monkeypatch.setattr(torch.hub, "urlopen", answer)
    return asked, hashlib.sha256(data).hexdigest()


def test_weights_come_over_https_with_their_hash_once(served: tuple[list[str], str]) -> None:
    asked, sha256 = served
    for _ in range(2):
        load_official(model(), f"{ADDRESS}#sha256={sha256}")
    assert asked == [ADDRESS]
    (file,) = (Path(os.environ[CACHE_VARIABLE]) / "weights").iterdir()
    file.write_bytes(b"another")  # what lies there has to have the hash as well
    load_official(model(), f"{ADDRESS}#sha256={sha256}")
    assert asked == [ADDRESS, ADDRESS]
    url = {"url": f"{ADDRESS}#sha256={sha256}", "num_classes": 10}
    timm.create_model("test_spanetv2", pretrained=True, num_classes=10, img_size=32,
                      pretrained_cfg_overlay=url)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"weights of spanet_s: got https://.* no hash"):
        timm.create_model("spanet_s", pretrained=True)


ZEROS = "0" * 64


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (ADDRESS, "which states no hash"),
        (f"{ADDRESS}#sha256=12", "which states no hash"),
        (f"http://example.org/w.pth#sha256={ZEROS}", "expected a local file, or https://"),
        (f"file:///etc/passwd#sha256={ZEROS}", "expected a local file, or https://"),
        (f"s3://bucket/w.pth#sha256={ZEROS}", "expected a local file, or https://"),
        (f"{ADDRESS}#sha256={ZEROS}", "it is another file"),
        (f"https://example.org/broken.pth#sha256={ZEROS}", "connection reset"),
    ],
)
def test_an_address_that_is_refused(address: str, says: str, served: tuple[list[str], str]) -> None:
    with pytest.raises(CheckpointError, match=re.escape(address.partition("#")[0])) as error:
        read_weights(address)
    assert says in str(error.value)
    assert not list(Path(os.environ[CACHE_VARIABLE]).rglob("*.*"))
