"""One self-contained HTML page of a work directory: no file and no network beside it, light and dark, also on a phone."""

import base64
import html
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

from igpt_jax.progress import duration
from igpt_jax.reporting.charts import charts
from igpt_jax.reporting.course import course, points
from igpt_jax.reporting.workdir import OTHERS, PICTURES, Workdir, picture_type
from igpt_jax.training.recipe import describe, flatten

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b646e; --page: #ffffff; --card: #f4f6f8; --line: #d5dae0; --link: #1f6fb8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --page: #14171a; --card: #1e2328; --line: #39424b; --link: #79b8f0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page) }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
p, li { overflow-wrap: anywhere } .soft { color: var(--soft) }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)) }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)) }
.card { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; min-width: 0 }
.card b { display: block; font-size: 1.15rem; overflow-wrap: anywhere }
figure { margin: 0 }
figcaption { color: var(--soft); font-size: .9rem; padding-bottom: .3rem }
svg { width: 100%; height: auto; display: block } svg text { fill: currentColor }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: .3rem }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; white-space: nowrap }
td, th { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line) }
pre { overflow-x: auto; background: var(--card); padding: .7rem .9rem; border-radius: .5rem; font-size: .8rem }
"""


def page(found: Workdir) -> str:
    """Return the page of a work directory as HTML."""
    title = f"igpt_jax: {found.path.resolve().name or found.path}"
    parts = [_head(found), _tiles(found), _curves(found), _pictures(found), _probe(found), _recipe(found), _starts(found), _missing(found)]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{meta}<title>{_text(title)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _head(found: Workdir) -> str:
    written = time.strftime("%Y-%m-%d %H:%M")
    return f'<h1>{_text(found.path.resolve().name or found.path)}</h1><p class="soft">{_text(what(found))}. {_text(found.path)}, {written}</p>'


def what(found: Workdir) -> str:
    """Return in a sentence what the run is."""
    recipe = found.recipe
    if not recipe:
        size = found.palette.get("size")
        return f"A palette of {size} colours, not trained" if size else "A work directory"
    model, data = recipe.get("model", {}), recipe.get("data", {})
    kind = "Fine-tuning" if recipe.get("loss", {}).get("classification") else "Pretraining"
    objective, size = model.get("objective", "?"), data.get("image_size", "?")
    shape = f"{model.get('layers', '?')} layers of width {model.get('width', '?')}, {model.get('vocabulary', '?')} colours"
    return f"{kind} ({objective}) on {data.get('source', '?')} at {size} x {size}, {shape}"


def _tiles(found: Workdir) -> str:
    tiles = [(name, value) for name, value in numbers(found).items() if value]
    cards = "".join(f'<div class="card"><span class="soft">{_text(name)}</span><b>{_text(value)}</b></div>' for name, value in tiles)
    return f'<div class="grid">{cards}</div>' if cards else ""


def numbers(found: Workdir) -> dict[str, str]:
    """Return what the page shows first, as texts by their names; "" for what is not known."""
    tiles = {"steps": f"{found.steps:,} of {found.recipe['steps']:,}" if found.recipe.get("steps") else ""}
    if (nats := found.result.get("nats_per_pixel")) is not None:
        tiles[f"loss at the end, {found.result.get('split', 'held-out')} images"] = f"{nats:.4f} nats per pixel"
    if (accuracy := found.result.get("accuracy")) is not None:
        tiles[f"accuracy at the end, {found.result.get('split', 'held-out')} images"] = f"{accuracy:.1%}"
    if found.best:
        metric = found.recipe.get("best", {}).get("metric") or "nats_per_pixel"
        tiles[f"best {metric.replace('_', ' ')}, validation"] = f"{found.best['value']:.4f} at step {found.best['step']:,}"
    tiles |= _speed(found)
    start = found.starts[-1] if found.starts else {}
    parameters = found.result.get("parameters") or start.get("parameters")
    tiles |= {"parameters": f"{parameters:,}" if parameters else "", "hardware": start.get("hardware", "")}
    if found.palette.get("psnr"):
        tiles["palette"] = f"{found.palette['size']} colours, PSNR {found.palette['psnr']:.1f} dB"
    if found.probe.get("best"):
        best = found.probe["best"]
        tiles[f"linear probe, best layer ({best['layer']} of {found.probe['model']['layers']})"] = _percent(best.get("test", best.get("validation")))
    return tiles


def _speed(found: Workdir) -> dict[str, str]:
    _, speeds = points(found.lines, "train/images_per_second")
    if not len(speeds) or "batch_size" not in found.recipe:
        return {}
    images = (found.starts[-1] if found.starts else {}).get("training_images")
    run = course([line for line in found.lines if "time" in line], found.recipe["batch_size"], images or 1)
    _, mfu = points(found.lines, "train/mfu")
    tiles = {"speed, median": f"{statistics.median(speeds):,.0f} images/s" + (f", {statistics.median(mfu):.1%} MFU" if len(mfu) else "")}
    tiles["time of the steps"] = duration(3600 * run["hours"]) + (f", stopped {run['pauses']} times" if run["pauses"] else "")
    return tiles | {"images seen": f"{run['images_seen']:,}" + (f", {run['epochs']:.3g} epochs" if images else "")}


def _curves(found: Workdir) -> str:
    figures = "".join(f'<figure class="card"><figcaption>{_text(title)}</figcaption>{svg}</figure>' for title, svg in charts(found.lines))
    return f'<h2>Curves</h2><div class="grid wide">{figures}</div>' if figures else ""


def caption_of(name: str) -> str:
    """Return what a picture shows, where its name tells, and its name."""
    shows = PICTURES[name][0] if name in PICTURES else OTHERS.get(name)
    return f"{shows} ({name})" if shows else name


def _pictures(found: Workdir) -> str:
    def figure(name: str, content: bytes) -> str:
        source, shown = f"data:image/{picture_type(name)};base64,{base64.b64encode(content).decode()}", _text(caption_of(name))
        return f'<figure class="card"><figcaption>{shown}</figcaption><img alt="{shown}" src="{source}"></figure>'

    figures = "".join(figure(name, content) for name, content in found.pictures.items())
    return f'<h2>Pictures</h2><div class="grid wide">{figures}</div>' if figures else ""


def _probe(found: Workdir) -> str:
    rows = found.probe.get("layers", [])
    if not rows:
        return ""
    pixels = found.probe.get("raw_pixels")
    named = [(f"layer {row['layer']}" + (", best on validation" if row["layer"] == found.probe["best"]["layer"] else ""), row) for row in rows]
    cells = [
        (name, _percent(row.get("validation")), _percent(row.get("test")), _interval(row), _percent((row.get("knn") or {}).get("test")))
        for name, row in named + ([("raw pixels", pixels)] if pixels else [])
    ]
    note = f'<p class="soft">Trained on the features of step {found.probe.get("step", "?")}; test accuracy with its 95 % interval over the images.</p>'
    return "<h2>Linear probes</h2>" + note + _table(("", "validation", "test", "95 % interval", "nearest neighbours"), cells)


def _recipe(found: Workdir) -> str:
    if not found.recipe:
        return ""
    recipe = {key: value for key, value in found.recipe.items() if key != "history"}
    changes = [
        f"from step {entry['step']:,} on: {key} {json.dumps(old)} -> {json.dumps(new)}"
        for entry in found.recipe.get("history", [])
        for key, (old, new) in entry["changes"].items()
    ]
    whole = "\n".join(f"{key:<28} {json.dumps(value)}" for key, value in flatten(recipe).items())
    text = "\n".join([*_differences(recipe), *changes])
    return f"<h2>Recipe</h2><pre>{_text(text)}</pre><details><summary>every key</summary><pre>{_text(whole)}</pre></details>"


def _differences(recipe: dict[str, Any]) -> list[str]:
    from igpt_jax.cli import base_recipe

    return describe(recipe, base_recipe().to_dict())[1:] or ["that of configs/base.py"]


def _starts(found: Workdir) -> str:
    if not found.starts:
        return ""
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(start.get("time", 0))), f"{start.get('step', 0):,}", start.get("commit", ""),
            f"{start.get('processes', 1)} x {start.get('hardware', '')}" if start.get("processes", 1) > 1 else start.get("hardware", ""),
            ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items()),
        )
        for start in found.starts
    ]  # fmt: skip
    command = f"<pre>{_text(found.starts[-1].get('command', ''))}</pre>"
    return "<h2>Starts</h2>" + _table(("time", "from step", "commit", "hardware", "versions"), rows) + command


def _missing(found: Workdir) -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in found.missing)
    return f"<h2>What is not here</h2><ul>{items}</ul>" if items else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><tr>{"".join(f"<th>{_text(name)}</th>" for name in head)}</tr>{body}</table></div>'


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _interval(row: dict[str, Any]) -> str:
    return f"{100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f}" if row.get("interval") else "-"


def _text(value: Any) -> str:
    return html.escape(str(value))
