"""Summaries for a file of dialogues, in windows, gone on with where they broke off."""
