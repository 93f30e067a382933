"""The command line: the flags of main.py, the subcommands of `cmap`, tables and errors."""
