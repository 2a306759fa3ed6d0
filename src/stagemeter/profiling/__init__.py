"""How long stages took: measured here (`harness`), or read from what other tools wrote (`readers`)."""
