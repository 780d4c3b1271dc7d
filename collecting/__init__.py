"""People's rankings of completions: sampling them, ranking them on a page, exchanging them.

About half of the package is web code: ``page/`` is a separate application with mouse, touch and
keyboard, a dark and a phone layout, and drafts that survive a lost connection.
"""
