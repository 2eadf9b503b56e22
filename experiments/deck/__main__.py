"""Build the presentation: see experiments/deck/__init__.py."""

import pathlib

from experiments.deck import RESULTS, build
from igpt_jax.cli import ANY_ERROR, Parser, fail, prepare_folder


def main() -> None:
    parser = Parser(prog="python -m experiments.deck", description="Build a presentation of the results, to open in a browser.")
    parser.add_argument("--out", default="runs/deck", type=pathlib.Path, help="folder of the presentation")
    parser.add_argument("--results", default=RESULTS, type=pathlib.Path, help="folder with the numbers and pictures")
    arguments = parser.parse_args()
    try:
        prepare_folder(arguments.out)
        slides = build(arguments.out, arguments.results)
    except ANY_ERROR as error:
        fail(error)
    for slide in slides:
        if slide.missing:
            print(f"not run, as slide {slide.number} says ({slide.title}): {', '.join(slide.missing)}")
    print(f"{len(slides)} slides: open {arguments.out / 'index.html'}, to print {arguments.out / 'index.html'}?print-pdf")


if __name__ == "__main__":
    main()
