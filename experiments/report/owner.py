"""Write the owner of the repository, which setup.cfg's `url` names, into every address of it: `python -m experiments.report.owner`.

A fork or a move changes that line and runs this: badges, install cells of notebooks, CITATION.cff, CONTRIBUTING.md, templates and documentation follow.
"""

import configparser
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PATTERNS = ("*.md", "*.cff", "docs/**/*.md", "docs/*.py", ".github/**/*.md", ".github/**/*.yml", "notebooks/*.ipynb")
ADDRESS = re.compile(r"(github(?:\.com)?/)[\w.-]+(/igpt_jax\b)")  # of the repository, and of a notebook in Colab


def files() -> list[pathlib.Path]:
    """The files that may hold an address."""
    return sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})


def owner() -> str:
    """The owner's name in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    url = re.fullmatch(r"https://github\.com/([\w.-]+)/igpt_jax", setup["metadata"]["url"])
    if url is None:
        raise ValueError(f"setup.cfg's url is {setup['metadata']['url']!r}: write https://github.com/OWNER/igpt_jax")
    return url[1]


def with_owner(text: str, name: str) -> str:
    return ADDRESS.sub(rf"\g<1>{name}\g<2>", text)


def main() -> None:
    for path in files():
        text = path.read_text()
        written = with_owner(text, owner())
        if written != text:
            path.write_text(written)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
