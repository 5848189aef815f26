"""Volumes, cases, files and sets.

A notebook that shows a Volume or a Case asks it for a PNG. How to draw one is known to the chapter of pictures, which
comes after this one and imports it; so the method is hung on here, and loads that chapter when it is first asked.
"""
from .case import Case
from .volume import Volume


def _png(self):
    "A small picture for a notebook, or None where there is nothing to draw: then the text stands alone"
    try:
        from ..view.maps import png
        return png(self)
    except Exception: return None


Volume._repr_png_ = Case._repr_png_ = _png
