"""What every other part builds on: guarded readers of files, patterns and paths that come from outside."""
