"""Studies: an ablation or a search, defined in YAML, run by Optuna, reported with statistics."""
