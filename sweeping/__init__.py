"""Sweeps: a plan of combinations, and the runs that it makes."""
