"""Foundations of every other room, guarded readers of outside files and patterns among them."""
