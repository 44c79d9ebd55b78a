"""The documentation's site: Sphinx, MyST and Furo. `scripts/docs` builds it, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "reference"))
import generate

generate.write_pages()

project = "Edgewise"
author = "the Edgewise authors"
copyright = "the Edgewise authors, Apache-2.0"
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["reference/generate.py"]
root_doc = "index"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "Edgewise"
html_extra_path = ["openapi.json", "asyncapi.json"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
