"""From a configuration to a report: the workload that is asked for, its counts by three tiers, and their report."""
