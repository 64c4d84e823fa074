"""What can be moved with a slider in a notebook. Each works by keyboard, and says in words what it shows."""

from luce_edu.widgets.explorer import PowerExplorer

__all__ = ["PowerExplorer"]
