"""The subcommands of report.py, a file for each: a function, and how its options are read."""
