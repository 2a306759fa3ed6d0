"""Setting counts and times of several workloads, models or versions side by side."""
