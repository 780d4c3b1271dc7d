"""The top layer: the command line behind train.py, and `python -m alignsum COMMAND`."""
