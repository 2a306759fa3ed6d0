"""Limits of machines: peaks of accelerators with their sources, roofline bounds, and measured peaks."""
