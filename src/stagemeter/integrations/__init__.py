"""Callbacks for trainers of other packages, and automatic logging, each in one line of a script."""
