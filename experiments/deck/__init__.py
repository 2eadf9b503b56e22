"""A presentation of the results: run `make deck`, then open runs/deck/index.html, which needs no network.

slides.py fills slides.md with numbers, pictures and tables (tables.py) from experiments/results/ and recipes from configs/; the result is index.html. The
folder also has copies of reveal.js, its plugins and KaTeX, which `npm ci --prefix experiments/deck` fetched. `index.html?print-pdf` is the version to print.
"""

import html
import pathlib
import shutil

from experiments.deck.slides import Slide, fill, split

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parent / "results"
LIBRARIES = {  # package -> its files that a browser reads, and its licence
    "reveal.js": ("dist/reset.css", "dist/reveal.css", "dist/theme/white.css", "dist/reveal.js", "dist/plugin", "LICENSE"),
    "reveal.js-menu": ("menu.css", "menu.js", "font-awesome", "LICENSE"),
    "reveal.js-pointer": ("dist", "LICENSE"),
    "katex": ("dist/katex.min.css", "dist/katex.min.js", "dist/contrib/auto-render.min.js", "dist/fonts", "LICENSE"),
}


def build(
    out: pathlib.Path, results: pathlib.Path = RESULTS, libraries: pathlib.Path = HERE / "node_modules", slides: pathlib.Path = HERE / "slides.md"
) -> list[Slide]:
    """Write OUT/index.html and all files that it loads; return the filled slides.

    ValueError for a placeholder that names nothing, OSError if a library was not fetched; both are raised before anything is written.
    """
    out, results, libraries = pathlib.Path(out), pathlib.Path(results), pathlib.Path(libraries)
    for package in LIBRARIES:
        if not (libraries / package / "package.json").exists():
            raise FileNotFoundError(f"{libraries / package} is missing: run make deck, or npm ci --prefix {HERE.relative_to(HERE.parents[1])}")
    filled = [fill(slide, results) for slide in split(pathlib.Path(slides).read_text())]
    for folder in ("libraries", "pictures"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    for package, parts in LIBRARIES.items():
        for part in parts:
            _copy(libraries / package / part, out / "libraries" / package / part)
    for picture in {name for slide in filled for name in slide.pictures}:
        _copy(results / picture, out / "pictures" / picture)
    _copy(HERE / "deck.css", out / "deck.css")
    (out / "index.html").write_text((HERE / "index.html").read_text().replace("<!-- slides -->", "\n".join(map(_section, filled))))
    return filled


def _section(slide):
    """A slide as the Markdown plugin of reveal.js reads it; only in a textarea can the Markdown contain HTML."""
    return f"<section data-markdown><textarea data-template>\n{html.escape(slide.markdown, quote=False)}\n</textarea></section>"


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
