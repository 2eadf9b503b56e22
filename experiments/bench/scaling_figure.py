"""The figure of experiments.bench.scaling, also from its JSON alone: `python -m experiments.bench.scaling_figure FILE.json`."""

import json
import pathlib

from igpt_jax.cli import Parser, program


def draw(result: dict, path) -> None:
    """Step times, measured and expected, and below them the memory, of each axis, all scales logarithmic, as a PNG beside the JSON at `path`."""
    try:
        import matplotlib
    except ImportError:
        print(f"no figure: matplotlib is not installed; where it is, python -m experiments.bench.scaling_figure {path}")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(result["axes"])
    figure, panels = pyplot.subplots(2, count, figsize=(3.2 * count, 6.4), layout="constrained", squeeze=False, sharey="row", sharex="col")
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
    pyplot.close(figure)
    print(f"wrote {path.with_suffix('.png')}")


def main() -> None:
    parser = Parser(prog="python -m experiments.bench.scaling_figure", description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    file = parser.parse_args().file
    draw(json.loads(file.read_text()), file)


if __name__ == "__main__":
    program(main)
