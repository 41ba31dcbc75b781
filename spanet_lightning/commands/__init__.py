"""The subcommands of `spanet`: a module each, imported when it is called."""
