"""Tables of the slides, as Markdown. A link names the file that a row comes from; the slide's footer lists these files."""

import json
import pathlib
import re

from experiments.bench import table
from experiments.deck.slides import parameters, recipe
from experiments.report import entrance

SIZES = {"S": "configs/s.py", "M": "configs/m.py", "L": "configs/l.py", "XL": "configs/xl.py"}
RESOLUTION = 64  # of XL's recipe
MFU = "50%"  # a key of plan.json


def models(_: pathlib.Path) -> str:
    """Return the paper's sizes; parameters are counted at 32 x 32, like the published numbers."""
    lines = ["| model | layers | width | heads | parameters, 32 x 32 | learning rate |", "|---|--:|--:|--:|--:|--:|"]
    for name, source in SIZES.items():
        config = recipe(source)
        model = config.model
        lines.append(f"| [{name}]({source}) | {model.layers} | {model.width} | {model.heads} | {parameters(source, 32):,} | {config.optim.learning_rate:g} |")
    return "\n".join(lines)


def speed(results: pathlib.Path) -> str:
    """Return the table of speed on a CPU, without comparisons of ours with ours, and of the input by its default alone beside the faster loader.

    A column with one value in all rows is written once below the table.
    """
    text = table.on_a_cpu(results).replace(", same functions", "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rows = [[re.sub(r"(\]\([^)]*\)).*", r"\1", what), *cells] for what, *cells in rows if not (cells[1].startswith("ours") or _is_left_out(what, cells[1]))]
    columns = list(zip(*rows, strict=True))
    constant = [f"{title}: {cells[0]}" for title, _, *cells in columns if len(set(cells)) == 1]
    varied = zip(*(column for column in columns if len(set(column[2:])) > 1), strict=True)
    return "\n".join("| " + " | ".join(row) + " |" for row in varied) + "".join(f"\n\n{text}." for text in constant)


def _is_left_out(what: str, peer: str) -> bool:
    return "by processes" in what or peer.endswith("plain Pillow")


def pods(results: pathlib.Path) -> str:
    """Return XL on each pod of the plan, with the memory that its compiled step needs on a device."""
    plan, compiled = (json.loads((results / name).read_text()) for name in ("plan.json", "aot.json"))
    recipes = {command: row for command, row in compiled["rows"].items() if command.startswith("configs/xl.py") and "image_size" not in command}
    needs = {row["topology"]: row for row in recipes.values() if "refused" not in row}
    head = f"| [XL](plan.json), {RESOLUTION} x {RESOLUTION} | chips | mesh | batch | [GiB](aot.json) a device | days, {MFU} MFU |"
    lines = [head, "|---|--:|---|--:|--:|--:|"]
    for pod in plan["pods"]:
        if pod["resolution"] == RESOLUTION:
            mesh = " x ".join(f"{axis} {size}" for axis, size in pod["mesh"].items() if size > 1)
            need = needs.get(pod["topology"])
            memory = f"{need['needed_bytes'] / 2**30:.1f} of {need['limit_bytes'] / 2**30:.1f}" if need else "not run"
            lines.append(f"| {pod['topology']} | {pod['chips']} | {mesh} | {pod['batch']} | {memory} | {pod['days'][MFU]:.1f} |")
    return "\n".join(lines)


def findings(results: pathlib.Path) -> str:
    """Return README's table of findings, with a link to the file that it comes from."""
    return entrance.findings_block(results).replace("| sentence of the paper |", "| [sentence of the paper](claims.json) |", 1)


TABLES = {"models": models, "speed": speed, "pods": pods, "findings": findings}
