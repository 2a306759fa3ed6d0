"""What families that are built alike have in common."""
