"""Many workloads at once: a grid, evaluated by closed form into a table."""
