"""report.html: one self-contained file with everything that a comparison has to show."""
