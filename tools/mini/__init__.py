"""The embedded miniature: a generated corpus, and small models for it."""
