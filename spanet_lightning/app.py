"""`python -m spanet_lightning.app`: the `spanet` command."""

from spanet_lightning.cli.app import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    main()
