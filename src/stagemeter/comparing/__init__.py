"""Compare counts and times of several workloads, models or versions."""
