"""Tables of the slides, as Markdown; a link names the file that a row comes from, and the slide's footer takes it from there."""

import json
import pathlib
import re

from experiments.bench import table
from experiments.deck.slides import parameters, recipe

SIZES = {"S": "configs/s.py", "M": "configs/m.py", "L": "configs/l.py", "XL": "configs/xl.py"}
SIDE = 64  # of the images of XL's recipe
SHARE = "50%"  # of the chips' peak, a key of plan.json


def models(_) -> str:
    """The paper's sizes; parameters are counted at 32 x 32, where the published numbers are."""
    lines = ["| model | layers | width | heads | parameters, 32 x 32 | learning rate |", "|---|--:|--:|--:|--:|--:|"]
    for name, source in SIZES.items():
        config = recipe(source)
        model = config.model
        lines.append(f"| [{name}]({source}) | {model.layers} | {model.width} | {model.heads} | {parameters(source, 32):,} | {config.optim.learning_rate:g} |")
    return "\n".join(lines)


def speed(results: pathlib.Path) -> str:
    """README's table of speed, the work by its name alone and beside others' programs; a column that says the same in every row is said once below."""
    text = table.block(results)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rows = [[re.sub(r"(\]\([^)]*\)).*", r"\1", what), *cells] for what, *cells in rows if not cells[1].startswith("ours")]
    columns = list(zip(*rows, strict=True))
    said = [f"{title}: {cells[0]}" for title, _, *cells in columns if len(set(cells)) == 1]
    kept = zip(*(column for column in columns if len(set(column[2:])) > 1), strict=True)
    return "\n".join("| " + " | ".join(row) + " |" for row in kept) + "\n\n" + "".join(f"{one}. " for one in said) + "Medians of rounds in turns."


def pods(results: pathlib.Path) -> str:
    """XL on each pod of the plan, and what its compiled step needs of a device."""
    plan, compiled = (json.loads((results / name).read_text()) for name in ("plan.json", "aot.json"))
    own = {command: row for command, row in compiled["rows"].items() if command.startswith("configs/xl.py") and "image_size" not in command}
    needs = {row["topology"]: row for row in own.values() if "refused" not in row}
    lines = [f"| [XL](plan.json), {SIDE} x {SIDE} | chips | mesh | batch | [GiB](aot.json) a device | days, {SHARE} MFU |", "|---|--:|---|--:|--:|--:|"]
    for pod in plan["pods"]:
        if pod["side"] == SIDE:
            mesh = " x ".join(f"{axis} {size}" for axis, size in pod["mesh"].items() if size > 1)
            need = needs.get(pod["topology"])
            memory = f"{need['peak_bytes'] / 2**30:.1f} of {need['limit_bytes'] / 2**30:.1f}" if need else "not run"
            lines.append(f"| {pod['topology']} | {pod['chips']} | {mesh} | {pod['batch']} | {memory} | {pod['days'][SHARE]:.1f} |")
    return "\n".join(lines)


TABLES = {"models": models, "speed": speed, "pods": pods}
