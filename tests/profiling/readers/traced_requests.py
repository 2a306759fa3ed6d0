"""What the traces of these tests show."""

#: Decode steps of a request, and requests.
STEPS = 3
REQUESTS = 2

#: Code for the most memory that a process had, in bytes. What `resource` tells begins with the parent's.
PEAK_MEMORY = "1024 * int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
