"""A search's result for people: table rows, a picture, and a page. matplotlib is needed for the picture alone."""

from edgewise_converter.reporting.details import Details, LayerDamage
from edgewise_converter.reporting.page import html, write_html
from edgewise_converter.reporting.picture import png, write_png
from edgewise_converter.reporting.table import front, others, table

__all__ = ["Details", "LayerDamage", "front", "html", "others", "png", "table", "write_html", "write_png"]
