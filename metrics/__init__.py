"""Metrics over texts and the intervals of their means."""
