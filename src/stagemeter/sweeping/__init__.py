"""Sweeps: a grid of workloads, evaluated by closed form into a table."""
