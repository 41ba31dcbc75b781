"""Measurements of speed and memory that others can repeat: what `spanet bench` runs.

Every comparison alternates: within one process each subject is measured once a round, and what is
reported is the median of the ratios within rounds, with their spread (`timing`). A machine that
slows down for a while then slows both sides of a ratio.

**The JSON document** that each benchmark writes (`--json FILE`), schema "spanet-bench/1":

- `schema`, `benchmark` ("models", "ops", "data", "resolution"), `created` (ISO 8601, UTC),
- `command`: the command line that was run,
- `machine`: `device`, `cores`, `threads`, `cpu_capability`, `cuda`, `system`, `load_average`,
- `versions`: of Python and of each package that matters; `commit`: `id` and `dirty`, or null,
- `settings`: every field of `Settings` (or of `data`'s own options),
- `ceiling`: `macs_per_second` and `bytes_per_second` as measured (`ceiling`), or null,
- `results`: a list; each entry has `subject` and `mode`, `seconds` (one value a round: a call for
  models and ops, an image for data and resolution) and what the benchmark adds (below),
- `ratios`: a list; each entry has `subject`, `against`, `mode` and `speedup`, an object of
  `rounds`, `median`, `q1`, `q3`, `low` and `high`: time of `against` over time of `subject`, so
  that 2 means twice as fast.

Names of `mode`: "eval", "train" (models); "forward", "forward+backward" (ops); "train" or "eval"
with the number of workers, as "train, 2 workers" (data); "eval" (resolution).

What the benchmarks add to an entry of `results`:

- models: `images_per_second`, `ms_per_image`, `parameters`, `macs` (an image; see `cost`),
  `spectral_macs`, `ceiling_share` (MACs/s over the ceiling; a training step counts 3 forward
  passes), `memory` (`standing`, `transient`, `peak`, in bytes; see `memory`) and `compiled`
  (`graphs`, `graph_breaks`; null in eager mode). Entries of `ratios` add `memory` (peak of
  `subject` over that of `against`) and `difference`: where both share their weights, the largest
  difference of logits over their largest magnitude, in float32.
- ops: `kind`, `stage`, `shape` (B, C, H, W), `impl`, `ms`, `macs` (a call), `floor_ms` (`products`
  and `copy`: the time of the MACs, and of reading the input and writing the output once, at the
  measured ceilings; forward alone).
- data: `images_per_second`; `seconds` end with normalised batches, as a training step gets them.
- tracking: `seconds` of a training step (mode "step"), or of the call that logs (mode "call"); the
  entries of `ratios` are against the subject "no tracker".
- sweep: `trials_per_minute`, for book-keeping alone; `mode` is "start" or "storage".
- resolution: `size` (pixels of a side), `pixels`, `batch`, `ms_per_image`. The document also has
  `fits`, one for each subject: `terms` (name → seconds), `shares` (name → share
  at the largest size), `largest_error`, `held_out_error` (relative; see `growth`).
"""
