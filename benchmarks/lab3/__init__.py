"""Lab 3, measured: TRL's PPOTrainer as the course calls it, used with care, and this package."""
