"""Build report.html: one self-contained page that shows everything about a comparison."""
