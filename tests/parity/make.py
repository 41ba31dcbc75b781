"""Cut recordings of the official models down to what the tests compare.

Run: python -m tests.parity.make RECORDINGS, with RECORDINGS the folder of full recordings: `tiny/`
and `full/` with tensors `output` or `B/logits`, stages, and `grad_input`, as safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent
SAMPLES = 64


def sample(x: Tensor) -> Tensor:
    """Return 64 evenly spaced values of a tensor in NCHW order."""
    flat = x.contiguous().flatten()
    return flat[:: flat.numel() // SAMPLES][:SAMPLES].clone()


def main(recordings: Path) -> None:
    """Write one small file for each recording."""
    for path in sorted((recordings / "tiny").glob("*.safetensors")):
        full = load_file(path)
        nchw = "v1" in path.name
        kept = {"logits": full["output"], "grad_input": sample(full["grad_input"])}
        kept["grad_input_std"] = full["grad_input"].std()[None]
        for i in range(4):
            stage = full[f"stage{i}"] if nchw else full[f"stage{i}"].permute(0, 3, 1, 2)
            kept[f"stage{i}"] = sample(stage)
            kept[f"stage{i}_std"] = stage.std()[None]
        save_file(kept, HERE / f"{path.name.split('.')[0]}.safetensors")
    for path in sorted((recordings / "full").glob("*.safetensors")):
        full = load_file(path)
        kept = {"logits": full["B/logits"]}
        for i in range(4):
            kept[f"stage{i}"] = full[f"B/stage{i}_samples"]
            kept[f"stage{i}_std"] = torch.sqrt((full[f"B/stage{i}_channel_std"] ** 2).mean())[None]
        save_file(kept, HERE / f"{path.name.split('.')[0]}_224.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
