"""What machines can do at most: peaks of accelerators with their sources, roofline bounds, and measured peaks."""
