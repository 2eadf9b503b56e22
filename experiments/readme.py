"""Write README's generated blocks from experiments/results/: `python -m experiments.readme`. Numbers there are read, never typed.

A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; each is made by the experiment of that name from what it wrote.
"""

import json
import pathlib

from experiments import aot_table, chaos, plan
from experiments.bench import table

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments/results"
MODULES = {"aot": aot_table, "chaos": chaos, "plan": plan}  # each writes NAME.json and has readme_block(of it)


def blocks() -> dict[str, str]:
    """Name -> text of every block."""
    made = {name: module.readme_block(json.loads((RESULTS / f"{name}.json").read_text())) for name, module in MODULES.items()}
    return made | {"speed": table.block(RESULTS)}


def rewritten(readme: str) -> str:
    """README with every block made anew; ValueError where a marker is missing."""
    for name, text in blocks().items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if not readme.count(begin) == readme.count(end) == 1:
            raise ValueError(f"README.md lacks the markers {begin} and {end}: write both where the block belongs")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
