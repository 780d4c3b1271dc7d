"""Commands behind every measured claim."""
