"""Stored figures: recorded, published and modelled; models fitted to them; the validation of the clock."""
