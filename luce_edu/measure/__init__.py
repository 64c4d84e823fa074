"""Bytes, launches, time: numbers that always say where they come from."""
