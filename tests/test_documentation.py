"""The documentation: every page is reached, every public symbol is described, and it builds without a warning."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from docs import generate

DOCS = generate.DOCS
PAGES = {name: (DOCS / name).read_text() for name in sorted(generate.pages())}


def test_every_program_and_every_package_has_a_page():
    programs = {path.stem for path in (generate.ROOT / "igpt_jax").glob("*.py") if '__name__ == "__main__"' in path.read_text() and path.stem != "__main__"}
    assert set(generate.PROGRAMS) == programs
    folders = {path.parent.name for path in (generate.ROOT / "igpt_jax").glob("*/__init__.py")}
    assert set(generate.packages()) == folders
    assert "## convert export\n" in generate.program_page("convert") and "## " not in generate.program_page("report")


def test_every_public_symbol_has_a_docstring():
    assert generate.undocumented() == []


@pytest.mark.parametrize("page", PAGES)
def test_links_to_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(repo:([^)#]+)\)", PAGES[page]):
        assert (generate.ROOT / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index.md"])
def test_a_page_says_what_it_is_for_before_anything_else(page):
    title, _, rest = PAGES[page].partition("\n\n")
    assert title.startswith("# ") and re.match(r"[\w`]", rest), page


def test_recipe_keys_are_all_told_with_their_comments():
    page = generate.recipe_page()
    for key in ("seed", "data.source", "model.layers", "optim.learning_rate", "keep_every"):
        assert f"| `{key}` |" in page
    assert not re.findall(r"^\| `[^`]+` \| .* \|  \|$", page, re.M), "keys without a comment in configs/base.py"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("Return `x_BSD` * 2.", "Return ``x_BSD`` \\* 2."),
        ("Two kinds.\n- `a`: one\n  goes on\n- two\nThen.", "Two kinds.\n\n- ``a``: one\n  goes on\n- two\n\nThen."),
        ("Run:\n\n    python -m *x\n\nThen.", "Run:\n\n::\n\n    python -m *x\n\nThen."),
    ],
)
def test_a_docstring_becomes_restructured_text(text, made):
    lines = text.split("\n")
    generate.as_rst(None, "module", "name", None, None, lines)
    assert "\n".join(lines) == made


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    lacking = [name for name in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton", "sphinx_design") if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"needs the extra docs: {', '.join(lacking)} missing")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(command, cwd=generate.ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    built = {path.relative_to(tmp_path / "html").as_posix() for path in (tmp_path / "html").rglob("*.html")}
    assert {str(pathlib.PurePosixPath(page).with_suffix(".html")) for page in PAGES} <= built
