"""What hangs on the Trainer, one idea a file."""
