"""Measurements: bytes, launches, occupancy, latency, energy, profiles. Each number says where it comes from.

records/  stored figures, measured or published, models fitted to them, and the validation of the clock
bench/    runs measurements over systems and writes a record
power/    power limits, sweeps over them, and models of a sweep
"""
