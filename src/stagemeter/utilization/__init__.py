"""Times and a report: MFU, MBU, bounds on time, memory, and how many devices a load needs. Needs no torch."""
