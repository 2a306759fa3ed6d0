"""Builders that families share."""
