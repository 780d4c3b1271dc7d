"""How much memory a run will take, worked out from its settings before anything is loaded."""
