"""Benchmarks of speed and memory: what `spanet bench` runs.

Every comparison alternates: within one process each model is measured once a round, and the
reported ratio is the median of the ratios within rounds, with its quartiles (`timing`). A machine
that slows down for a while then slows down both sides of a ratio.

**The JSON document** (`--json FILE`), schema "spanet-bench/2":

- `schema`, `benchmark` ("models", "ops", "heads", "sweep"), `created` (ISO 8601, UTC), `command`,
- `machine`, `versions`, `commit` (`id` and `dirty`, or null), `settings`,
- `ceiling`: `macs_per_second` and `bytes_per_second` as measured, or null,
- `results`: one entry for each subject and mode, with `seconds` (per call, one value per round),
- `ratios`: `subject`, `against`, `mode` and `speedup` (`rounds`, `median`, `q1`, `q3`, `low`,
  `high`): time of `against` over time of `subject`, so that 2 means twice as fast.

Entries of `results` add, by benchmark:

- models, heads: `images_per_second`, `ms_per_image`, `parameters`, `macs` per image, `memory` in
  bytes (`standing`, `transient`, `peak`; see `memory`); models also `spectral_macs` and
  `ceiling_share`: MACs/s over the ceiling, where a training step counts three forward passes.
- ops: `stage`, `shape` (B, C, H, W), `ms`, `macs` per call and `floor_ms` (`products`, `copy`): the
  time of the MACs, and of reading the input and writing the output once, at the ceilings.
- sweep: seconds of a trial's parts.
"""
