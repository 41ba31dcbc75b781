"""Checkpoints that a command is asked to read: only local files of tensors, only ones that fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from spanet_lightning import checkpoints
from spanet_lightning.backbones import checkpoint_file
from spanet_lightning.backbones.official import knob
from spanet_lightning.cli import resume
from spanet_lightning.data.info import DataInfo, check_same, info_of, stored_info
from spanet_lightning.errors import CheckpointError, did_you_mean


def check(path: str | Path, model: nn.Module, root: str | Path = "runs", data: Any = None) -> None:
    """Check that a checkpoint can be read without running code, and holds this model's weights.

    Args:
        path: What the user gave as `ckpt_path`.
        model: The model that is to be restored.
        root: Folder of runs, searched for a suggestion.
        data: The data module that it is to be used on; None compares no classes.

    Raises:
        CheckpointError: If it can't, or does not.
        DataError: If the data has other classes, or another normalisation.
    """
    # Lightning takes addresses as well, and then unpickles whatever they hold.
    if "://" in str(path):
        raise CheckpointError(
            f"ckpt_path: got {str(path)!r}, expected a local file, not an address"
        )
    file = Path(path)
    if not file.is_file():
        folder = file if file.is_dir() else Path(root)
        near = [str(found) for found in sorted(folder.glob("**/*.ckpt"))]
        hint = did_you_mean(path, near) or (f"; there is {near[-1]!r}" if near else "")
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(
            f"ckpt_path: got {str(path)!r}, which {problem}; expected a checkpoint file{hint}"
        )
    try:
        state, _ = checkpoint_file.read(file)
    except CheckpointError as error:
        raise CheckpointError(f"ckpt_path: {error}{_instead(file)}") from None
    saved = state.get("state_dict") if isinstance(state, Mapping) else None
    if not isinstance(saved, Mapping) or "pytorch-lightning_version" not in state:
        raise CheckpointError(
            f"ckpt_path: {path} is not a checkpoint of a run; to start from official weights "
            f"set model.weights{_instead(file)}"
        )
    # First: other classes are why a head has another shape.
    stored, current = stored_info(state), info_of(data)
    if stored is not None and current is not None:
        check_same(stored, current, str(path))
    _compare(str(path), state, model)


def info_in(path: str | Path | None) -> DataInfo | None:
    """Return what a checkpoint says of its data; None where it can't be read, which `check` tells.

    Args:
        path: What the user gave as `ckpt_path`.
    """
    if path is None or not Path(path).is_file():
        return None
    try:
        state, _ = checkpoint_file.read(path)
    except CheckpointError:
        return None
    return stored_info(state) if isinstance(state, Mapping) else None


def _instead(file: Path) -> str:
    """Return the hint to a checkpoint beside a damaged one, where one loads."""
    near = [path for path in checkpoints.list_checkpoints(file.parent) if path.name != file.name]
    found = checkpoints.latest(near, resumable=False)
    if found is None:
        return ""
    return f"; {resume.offer(found)}"


def _compare(path: str, state: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse a checkpoint whose tensors are not the model's, naming what made them differ."""
    from spanet_lightning.heads.base import rename_first_version

    saved, wanted = rename_first_version(model, state["state_dict"]), model.state_dict()
    made_by = (state.get("hyper_parameters") or {}).get("backbone")
    made_by = made_by if isinstance(made_by, Mapping) else {}
    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted]
    other = {
        name: (tuple(saved[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    }
    if not (missing or extra or other):
        return
    way_out = f"; to start a new run from its weights: --model.weights={path} without --ckpt_path"
    if not (missing or extra) and all(".srf.logits." in name for name in other):
        sizes = [_image_side(name, shape) for name, shapes in other.items() for shape in shapes][:2]
        arguments = made_by.get("init_args") or {}
        sizes[0] = arguments.get("img_size", sizes[0])
        raise CheckpointError(
            f"ckpt_path: {path} stores its spectral filters for images of {sizes[0]} px, the "
            f"configured model for {sizes[1]} px: set model.backbone.img_size={sizes[0]}{way_out}"
        )
    heads = {name: shapes for name, shapes in other.items() if name.endswith(_LAST_LAYERS)}
    if heads and not (missing or extra) and heads == other:
        theirs, ours = next(iter(heads.values()))
        raise CheckpointError(
            f"ckpt_path: {path} has {theirs[0]} classes, the configured model {ours[0]}{way_out}"
        )
    differences = [
        f"{what} {len(names)} ({names[0]}{', …' if len(names) > 1 else ''})"
        for what, names in (
            ("lacks", missing),
            ("has extra", extra),
            (
                "has another shape of",
                [f"{name}, {theirs} for {ours}" for name, (theirs, ours) in other.items()],
            ),
        )
        if names
    ]
    backbone = getattr(model, "backbone", model)
    name = str(made_by.get("class_path", "")).rpartition(".")[2]
    variant = (made_by.get("init_args") or {}).get("variant")
    described = f" ({name}{f' {variant}' if variant else ''})" if name else ""
    raise CheckpointError(
        f"ckpt_path: {path}{described} is of another architecture than the configured "
        f"{type(backbone).__name__}: of {len(wanted)} tensors it {', '.join(differences)}"
        f"{knob(next(iter(other)) if other else (missing or extra)[0])}; its own run's config.yaml "
        "beside it configures it"
    )


_LAST_LAYERS = ("head.weight", "head.bias", "head.fc2.weight", "head.fc2.bias")


def _image_side(name: str, shape: tuple[int, ...]) -> int:
    """Return the side of the images, in pixels, for which a stage's logits are stored."""
    stage = int(name.partition("stages.")[2].partition(".")[0])
    return shape[1] * 4 << stage
