"""Write README's generated blocks from experiments/results/: `python -m experiments.readme`. Numbers there are read, never typed.

A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; each is made by the experiment of that name.
"""

import json
import pathlib

from experiments import aot_table, chaos, plan

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = {"aot": aot_table.readme_block, "chaos": chaos.readme_block, "plan": plan.readme_block}


def rewritten(readme: str) -> str:
    """README with every block made anew; ValueError where a marker is missing."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if not readme.count(begin) == readme.count(end) == 1:
            raise ValueError(f"README.md lacks the markers {begin} and {end}: write both where the block belongs")
        found = json.loads((ROOT / f"experiments/results/{name}.json").read_text())
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{make(found)}{end}{rest.split(end)[1]}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text()))
