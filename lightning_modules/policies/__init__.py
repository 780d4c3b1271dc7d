"""Policies and references on one backbone, and the gate before the first update."""
