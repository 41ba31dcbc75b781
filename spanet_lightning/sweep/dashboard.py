"""Optuna's dashboard as a process: `python -m spanet_lightning.sweep.dashboard HOST PORT`.

The storage is told by a variable of the environment, since an argument may be read by others.
"""

from __future__ import annotations

import os
import sys
import warnings

STORAGE_VARIABLE = "SPANET_OPTUNA_STORAGE"


def main() -> None:
    """Serve until a signal ends it."""
    from optuna_dashboard import run_server

    from spanet_lightning.sweep.storage import open_storage

    host, port = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore")
    run_server(open_storage(os.environ[STORAGE_VARIABLE], create=False), host=host, port=port)


if __name__ == "__main__":
    main()
