"""The commands from start to end, one module each: plan, work, write, log."""
