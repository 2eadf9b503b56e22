"""The figure of experiments.bench.scaling, drawn from its JSON file: `python -m experiments.bench.scaling_figure FILE.json`."""

import json
import pathlib

from igpt_jax.cli import Parser, program


def draw(result: dict, path: pathlib.Path) -> None:
    """Draw step times, measured and expected, and below them the memory, for each axis, as a PNG file beside the JSON file at `path`; log scales."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no figure: matplotlib is not installed; with it, run python -m experiments.bench.scaling_figure {path}")
        return

    count = len(result["axes"])
    figure = Figure(figsize=(3.2 * count, 6.4), layout="constrained")
    panels = figure.subplots(2, count, squeeze=False, sharey="row", sharex="col")
    for (above, below), (axis, measured) in zip(panels.T, result["axes"].items(), strict=True):
        points = measured["points"]
        values = [point["value"] for point in points]
        seconds, expected, gigabytes = ([point[key] / unit for point in points] for key, unit in (("seconds", 1), ("expected_seconds", 1), ("bytes", 1e9)))
        above.loglog(values, seconds, "o-", color="#08519c", label=f"measured, power {measured['slope']:.2f}")
        above.loglog(values, expected, "--", color="#d95f02", label=f"operations, power {measured['expected_slope']:.2f}")
        below.loglog(values, gigabytes, "s-", color="#08519c", label=f"compiled, power {measured['memory_slope']:.2f}")
        below.loglog(values, [gigabytes[-1] * value / values[-1] for value in values], "--", color="#d95f02", label="power 1")
        below.set(xlabel=axis)
        for panel in (above, below):
            panel.set_xticks(values, values)
            panel.minorticks_off()
            panel.grid(alpha=0.25)
            panel.legend(frameon=False, fontsize=8)
    panels[0][0].set(ylabel="seconds a step")
    panels[1][0].set(ylabel="memory of the compiled step, GB")
    base = result["sizes"]
    sizes = f"{base['layers']} layers, width {base['width']}, {base['positions']} positions, batch {result['batch']}, {result['dtype']}"
    figure.suptitle(f"One step, each time one of these varied: {sizes}; {result['hardware']}", fontsize=10)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"wrote {path.with_suffix('.png')}")


def main() -> None:
    parser = Parser(prog="python -m experiments.bench.scaling_figure", description=__doc__)
    parser.add_argument("file", type=pathlib.Path, help="JSON file of experiments.bench.scaling")
    file = parser.parse_args().file
    draw(json.loads(file.read_text()), file)


if __name__ == "__main__":
    program(main)
