"""The embedded miniature: a corpus from a seed, and the small models that go with it."""
