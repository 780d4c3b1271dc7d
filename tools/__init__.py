"""Tools that are not installed: the generator of the miniature."""
