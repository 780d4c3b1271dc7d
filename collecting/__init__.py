"""People's rankings of completions: drawn, shown on a page, kept in a file."""
