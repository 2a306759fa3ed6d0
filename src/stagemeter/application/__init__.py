"""What the commands do from start to end, one module each: plan, work, write, log."""
