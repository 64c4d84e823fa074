"""Widgets of the notebooks. Each works by keyboard and says in words what it shows."""

from luce_edu.widgets.explorer import PowerExplorer

__all__ = ["PowerExplorer"]
