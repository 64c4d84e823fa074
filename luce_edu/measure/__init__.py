"""Bytes, launches, time: numbers that always say where they come from.

Here stands what gives one number: bytes, launches, occupancy, latency, energy, a profile. Above it
records/  figures that are kept, measured or published, what is fitted to them, and the clock held against them
bench/    runs the measurements over systems, and writes a record
power/    limits, sweeps over them, and the models of a sweep
"""
