"""A substitute for ipywidgets where it is not installed: controls that hold values and notify observers.

The explorer then works from code, and its output is a static picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from traitlets import Any, HasTraits, link

__all__ = [
    "HTML", "BoundedIntText", "Button", "Dropdown", "HBox", "IntSlider", "Text", "ToggleButton", "VBox", "link",
]  # fmt: skip


class _Control(HasTraits):
    value, min, max, options, children = Any(), Any(), Any(), Any(()), Any(())

    def __init__(self, value=None, min=None, max=None, **looks):
        super().__init__(value=value, min=min, max=max)
        self.__dict__.update(looks)  # description, layout and the like

    def on_click(self, handler: Callable) -> None:
        """Do nothing: a control that is not shown cannot be clicked."""


class _Box(_Control):
    def __init__(self, children: Sequence = (), **looks):
        super().__init__(**looks)
        self.children = children

    def close(self) -> None:
        """Do nothing: nothing is shown."""

    def _repr_mimebundle_(self, **kwargs) -> dict[str, str]:
        return {"text/plain": f"{type(self).__name__}()"}


HTML = BoundedIntText = Button = Dropdown = IntSlider = Text = ToggleButton = _Control
HBox = VBox = _Box
