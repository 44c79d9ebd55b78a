"""A search's result for people: table rows, a picture, and a page. matplotlib is needed for the picture alone."""

from edgewise_converter.reporting.details import Details, LayerDamage
from edgewise_converter.reporting.page import html, write_html
from edgewise_converter.reporting.picture import png, write_png
from edgewise_converter.reporting.table import table

__all__ = ["Details", "LayerDamage", "html", "png", "table", "write_html", "write_png"]
