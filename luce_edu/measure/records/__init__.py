"""Figures that are kept: recorded, published, modelled; what is fitted to them, and the clock held against them."""
