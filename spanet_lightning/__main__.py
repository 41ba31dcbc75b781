"""`python -m spanet_lightning fit …`: the `lightning` command, whoever else owns that name."""

from spanet_lightning.cli import main

if __name__ == "__main__":
    main()
