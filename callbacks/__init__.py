"""What watches a run from outside: metrics, samples, plots, the run folder."""
