"""Configuration of the documentation."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import sys
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_VERSION_FILE = _ROOT / "src" / "scvi_perturb" / "_version.py"
_RESULTS = _ROOT / "benchmarks" / "results"
# A heading in place of the file's own, which is its first line.
_TABLE = """\
### Results (`{name}`)

```{{include}} ../benchmarks/results/{name}
:start-line: 1
:heading-offset: 2
```"""
_NO_RESULTS = "*No results are stored here yet; the command above writes them.*"

project = "scvi-perturb"
author = "scvi-perturb developers"
project_copyright = "2026, scvi-perturb developers"
version = release = runpy.run_path(str(_VERSION_FILE))["__version__"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
default_role = "code"

html_theme = "sphinx_book_theme"
html_title = f"{project} {version}"
html_theme_options = {
    "repository_url": "https://github.com/scvi-perturb/scvi-perturb",
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "show_navbar_depth": 1,
}

# What a package names in __all__ is its reference, in that order; types come from the signatures.
autodoc_default_options = {
    "members": True,
    "imported-members": True,
}
autodoc_class_signature = "mixed"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
# Else types of fields would be read as text with marks, in which "bool_" is a link.
napoleon_attr_annotations = False
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# Links into other projects' documentation need the network: on request only.
if os.environ.get("SCVI_PERTURB_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }


def _include_results(app, docname, source):
    """Put the tables of the benchmarks where the page has `<!-- results: pattern -->`."""
    del app
    if docname != "benchmarks":
        return

    def tables(marker):
        files = sorted(_RESULTS.glob(marker[1]))
        return "\n\n".join(_TABLE.format(name=file.name) for file in files) or _NO_RESULTS

    source[0] = re.sub(r"<!-- results: (\S+) -->", tables, source[0])


def _include_methods(app, docname, source):
    """Put a table made from a class where a page has `<!-- methods: module:Class names -->`."""
    del app

    def table(marker):
        where, *names = marker[1].split()
        module, _, name = where.partition(":")
        cls = getattr(import_module(module), name)
        rows = ["| | |", "|---|---|"]
        for method in names:
            found = inspect.getattr_static(cls, method)
            function = found.fget if isinstance(found, property) else found
            arguments = "" if isinstance(found, property) else _arguments(function)
            first = inspect.getdoc(function).splitlines()[0]
            rows.append(f"| `{method}{arguments}` | {first} |")
        return "\n".join(rows)

    source[0] = re.sub(r"<!-- methods: (.+?) -->", table, source[0])


def _arguments(function):
    """Return the names of a method's arguments, as they are written in a call."""
    names = [n for n in inspect.signature(function).parameters if n != "self"]
    return f"({', '.join(names)})"


def _draw_rooms(app):
    """Draw the rooms of the package from its imports."""
    del app
    sys.path.insert(0, str(_ROOT))
    house = import_module("benchmarks.house")
    house.draw(
        house.Source(_ROOT / "src" / "scvi_perturb"), _ROOT / "docs/_static/architecture.svg"
    )


def setup(app):
    """Register the tables; their page is read anew each time, as results come and go."""
    app.connect("builder-inited", _draw_rooms)
    app.connect("source-read", _include_results)
    app.connect("source-read", _include_methods)
    app.connect("env-get-outdated", lambda *_: ["benchmarks", "extending"])
