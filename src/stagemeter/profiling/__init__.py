"""Times of stages: measured here (`harness`), or read from files of other tools (`readers`)."""
