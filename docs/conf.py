"""Sphinx's configuration. Pages are MyST Markdown; docstrings are Google style with Markdown's backticks."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import perrin

project = "Perrin"
author = "The Perrin developers"
copyright = author
version = release = perrin.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Perrin {release}"
html_math_renderer = "mathml"  # browsers show it themselves: no script from elsewhere
suppress_warnings = ["ref.python"]  # two modules may each have a class of the same name

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3

default_role = "code"  # `x` in a docstring is code, as it is in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def equations_are_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a paragraph indented by four, an equation in our docstrings, a literal block as Markdown would."""
    out: list[str] = []
    indent, literal = 0, False
    for line in lines:
        width = len(line) - len(line.lstrip())
        if line.strip() and literal and width <= indent:
            literal = False
        if line.strip() and not literal:
            if width >= indent + 4 and out and not out[-1].strip():
                out += [" " * indent + "::", ""]
                literal = True
            else:
                indent = width
        out.append(line)
    lines[:] = out


def inline_math(writer: Any, node: Any) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display_math(writer: Any, node: Any) -> None:
    math = tex2mathml(node.astext(), as_block=True)
    writer.body.append(math.replace("<math", '<math style="overflow: visible; margin: 1em 0"', 1))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("autodoc-process-docstring", equations_are_code, priority=100)  # before napoleon
