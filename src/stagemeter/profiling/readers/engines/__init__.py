"""Serving engines: a table of metrics for each, and what all of their pages share."""
