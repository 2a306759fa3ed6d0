"""What the traces of these tests show."""

#: Decode steps of a request, and requests.
STEPS = 3
REQUESTS = 2
