"""Real machines: certificates, keys, units, a rehearsal, faults."""
