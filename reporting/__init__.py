"""What report.py does: score prediction files, compare runs."""
