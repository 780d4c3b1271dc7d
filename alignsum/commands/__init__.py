"""The commands of `python -m alignsum`, one module each."""
