"""From a configuration to a report: the workload, its counts by three tiers, and the report of them."""
