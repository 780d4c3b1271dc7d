"""The bottom layer: what every package may use. It imports nothing of ours."""
