"""`python -m igpt_jax` lists the programs."""

import ast
import pathlib


def programs() -> dict[str, str]:
    """Return the first sentence on each program, by its name."""
    sources = {path.stem: path.read_text() for path in sorted(pathlib.Path(__file__).parent.glob("*.py")) if not path.stem.startswith("_")}
    texts = {name: ast.get_docstring(ast.parse(source)) or "" for name, source in sources.items() if '__name__ == "__main__"' in source}
    return {name: text.splitlines()[0].partition(": `")[0].partition(". ")[0].rstrip(".") for name, text in texts.items()}


if __name__ == "__main__":
    print("Programs of igpt_jax, each with --help:\n")
    for name, text in programs().items():
        print(f"  python -m igpt_jax.{name:<10} {text}")
