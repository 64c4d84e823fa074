"""Measurements over systems: ours and those of others, one record for a machine."""
