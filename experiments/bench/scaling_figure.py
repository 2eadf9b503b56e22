"""The figure of experiments.bench.scaling, also from its JSON alone: `python -m experiments.bench.scaling_figure FILE.json`."""

import argparse
import json
import pathlib


def draw(result: dict, path) -> None:
    """Measured and expected step times of each axis, both scales logarithmic, as a PNG beside the JSON at `path`."""
    try:
        import matplotlib
    except ImportError:
        print(f"no figure: matplotlib is not installed; where it is, python -m experiments.bench.scaling_figure {path}")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(result["axes"])
    figure, panels = pyplot.subplots(1, count, figsize=(3.2 * count, 3.4), layout="constrained", squeeze=False, sharey=True)
    for panel, (axis, measured) in zip(panels[0], result["axes"].items(), strict=True):
        values = [point["value"] for point in measured["points"]]
        seconds, expected = ([point[key] for point in measured["points"]] for key in ("seconds", "expected_seconds"))
        panel.loglog(values, seconds, "o-", color="#08519c", label=f"measured, power {measured['slope']:.2f}")
        panel.loglog(values, expected, "--", color="#d95f02", label=f"operations, power {measured['expected_slope']:.2f}")
        panel.set_xticks(values, values)
        panel.minorticks_off()
        panel.set(xlabel=axis)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    panels[0][0].set(ylabel="seconds a step")
    base = result["sizes"]
    sizes = f"{base['layers']} layers, width {base['width']}, {base['positions']} positions, batch {result['batch']}, {result['dtype']}"
    figure.suptitle(f"One step, each time one of these varied: {sizes}; {result['hardware']}", fontsize=10)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    pyplot.close(figure)
    print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.scaling_figure", description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    file = parser.parse_args().file
    draw(json.loads(file.read_text()), file)
