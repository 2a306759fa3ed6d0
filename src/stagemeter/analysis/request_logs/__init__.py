"""Logs of requests: how each format is read, and what makes a line bad."""
