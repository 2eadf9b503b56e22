"""README's table of speed, from the JSON of the benchmarks alone; experiments/report/readme.py puts it there."""

import json
import pathlib

from experiments.bench import rounds

NOT_RUN = "not run on a GPU"
WORK = {  # file -> what it measures
    "train": "training step",
    "sample": "whole images, pixel by pixel",
    "encode": "colours to codes",
    "features": "features of all layers beside logits alone",
    "probe": "probes of all layers and values of C",
}


def block(results: pathlib.Path) -> str:
    """A row for each program beside ours; where a benchmark was not run, it says so."""
    lines = ["| work, on a CPU | ours, s | beside | s | ours is faster by (least to most of the rounds) | one H100 |", "|---|---|---|---|---|---|"]
    origins = set()
    for name, what in WORK.items():
        path = results / f"bench_{name}.json"
        if not path.exists():
            lines.append(f"| {what} | not run | | | | {NOT_RUN} |")
            continue
        found = json.loads(path.read_text())
        origins.add(f"commit {found['commit']}, {found['hardware']}")
        for peer, one in found["programs"].items():
            if peer != "ours":
                lines.append(f"| {_link(name, what)} | {_seconds(found['programs']['ours'])} | {peer} | {_compared(one)} | {NOT_RUN} |")
    lines += _data(results, origins) + _palette(results)
    return "\n".join([*lines, "", f"By `make bench`; {'; '.join(sorted(origins))}. Medians of rounds in turns; below 1 the other is the faster.", ""])


def _data(results, origins):
    path = results / "bench_data.json"
    if not path.exists():
        return [f"| images of the input pipeline | not run | | | | {NOT_RUN} |"]
    found, lines = json.loads(path.read_text()), []
    origins.add(f"commit {found['commit']}, {found['hardware']}")
    for source, programs in found["sources"].items():
        programs = programs.get("programs", programs)
        ours, times = programs["ours"], programs["ours"]["images_per_second"] / found["step_images_per_second"]
        what = f"{_link('data', f'batches from {source}')}, {ours['images_per_second']:,.0f} images/s, {times:,.0f} x what the training step eats"
        lines.append(f"| {what} | {_seconds(ours)} | torch's DataLoader | {_compared(programs['torch'])} | {NOT_RUN} |")
    return lines


def _palette(results):
    """Each peer beside the fastest of ours whose error is not above the peer's in any round, or where none is, beside ours to its end."""
    result = json.loads((results / "bench_palette.json").read_text())
    lines = []
    for name, theirs in result["rounds"].items():
        if name.startswith("ours"):
            continue
        good = [mine for mine in result["rounds"] if mine.startswith("ours") and _never_worse(result["rounds"][mine], theirs)]
        mine = min(good, key=lambda mine: result["median"][mine]["seconds"], default="ours")
        ours, peer = (result["median"][program]["mse"] for program in (mine, name))
        found = rounds.summary({"ours": result["rounds"][mine], name: theirs})
        what = f"{_link('palette', 'k-means, 512 colours')}, error {ours:.6f}" + (f", {result['early']} steps a level" if mine != "ours" else "")
        lines.append(f"| {what} | {_seconds(found['ours'])} | {name} (error {peer:.6f}) | {_compared(found[name])} | {NOT_RUN} |")
    return lines


def _never_worse(ours, theirs):
    return all(one["mse"] <= other["mse"] for one, other in zip(ours, theirs, strict=True))


def _compared(one):
    if "failed" in one:
        return f"failed: {one['failed'][:60]} |"
    return f"{_seconds(one)} | {one['ours_is_faster_by']:.2f} ({min(one['ratios']):.2f} to {max(one['ratios']):.2f})"


def _seconds(one):
    return f"{one['seconds']:.3g}"


def _link(name, what):
    return f"[{what}](experiments/results/bench_{name}.json)"
