"""Sphinx's settings. `make docs` builds docs/_build/html; a warning is an error."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import igpt_jax  # noqa: E402
from docs import generate  # noqa: E402
from experiments.report.owner import owner  # noqa: E402

project = "igpt_jax"
author = "the authors of igpt_jax"
copyright = "the authors of igpt_jax, Apache-2.0"
version = release = igpt_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "README.md"]
templates_path = ["templates"]
html_theme = "sphinx_book_theme"
html_title = "igpt_jax"
html_static_path = ["static"]
html_css_files = ["own.css"]
html_theme_options = {
    "repository_url": f"https://github.com/{owner()}/igpt_jax",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_edit_page_button": False,
    "show_toc_level": 2,
}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    # [text](repo:configs/xl.py) leads to a file of the repository; tests/test_docs.py checks that it exists
    "repo": {"url": f"https://github.com/{owner()}/igpt_jax/blob/main/{{{{path}}}}", "classes": ["repo"]},
}
nb_execution_mode = "off"  # tutorials are the notebooks with the outputs that they keep; a test executes them
nb_merge_streams = True
suppress_warnings = ["misc.highlighting_failure"]  # the installation cell has lines of IPython
copybutton_prompt_text = "$ "

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["gradio", "tensorflow"]


def setup(app) -> None:
    """Write the generated pages before anything is read."""
    app.connect("builder-inited", generate.write)
    app.connect("autodoc-process-docstring", generate.as_rst)
