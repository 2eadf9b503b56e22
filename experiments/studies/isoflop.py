"""How should a budget of computation be divided between a larger model and more images? (Yan et al. 2025, arXiv 2511.08704; Hoffmann et al. 2022, approach 2.)

    python -m experiments.studies.isoflop --config=configs/fashion_mnist_14.py --workdir=runs/isoflop --results=experiments/results

Trains the recipe at each of --sizes, which are layers x width with the recipe's head size, once for each of --budgets and seeds, for as many steps as the
budget of FLOPs allows (`ModelConfig.training_flops`, which counts attention), with the recipe's share of warm-up. A parabola in the logarithm of the
parameters is fitted to the final losses of each budget. Its minimum is the optimal size, and lines through the optima of all budgets give the exponents with
which optimal parameters and images grow, with intervals by a bootstrap of the residuals of the parabolas. The rate of a size is the recipe's times its width
divided by the size's (Yang et al. 2022), or that of 4x32@0.01. The loss is that of the recipe's held-out images. Runs of fewer than 100 steps are left out, and
an optimum at the end of the sizes is said and not extrapolated. This is a sweep: see experiments/studies/sweep.py.
"""

import math
import pathlib
from functools import partial
from typing import Any

import numpy as np

from experiments.studies import accuracy_by_loss, marks, stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.types import PathLike, Recipe

LEAST_STEPS = 100  # a run of fewer says more about the warm-up than about its size
DRAWS, DRAW_SEED = 2000, 0  # of the bootstrap
FITTED = 3  # numbers of a parabola
ENDS = (2.5, 97.5)  # percentiles of a 95 % interval
EXPONENTS = {"parameters": "optimal parameters", "images": "images seen by the optimal model"}


def sweep_budgets(config: Recipe, workdir: PathLike, budgets: list[str], sizes: list[str], seeds: int, **options) -> dict | None:
    """Run the jobs, one for each budget, size and seed, and draw; `options` are passed to sweep.run."""
    workdir, flops = pathlib.Path(workdir), [_budget(text) for text in budgets]
    plans = {(budget, size): plan(config, size, budget) for budget in flops for size in sizes}
    short = {key: recipe.steps for key, recipe in plans.items() if recipe.steps < LEAST_STEPS}
    for (budget, size), steps in short.items():
        print(f"{size} is left out at {budget:.2g} FLOPs, which are {steps} steps: a run needs at least {LEAST_STEPS}", flush=True)
    jobs = [
        sweep.Job(f"{budget:.3g}-{size}-{seed}".replace("@", "-").replace("+", ""), partial(measure, recipe, workdir, budget, size, seed))
        for (budget, size), recipe in plans.items()
        if (budget, size) not in short
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, {"measured": "held-out images"}, workdir, **options)


def plan(config: Recipe, size: str, budget: float) -> Recipe:
    """Return the recipe of a size for a budget of FLOPs: its steps, the recipe's share of warm-up, and a rate that falls with the width."""
    recipe = accuracy_by_loss.recipe_of(config, size, snapshots=1)
    if "@" not in size:
        recipe = stages.changed(recipe, optim__learning_rate=config.optim.learning_rate * config.model.width / recipe.model.width)
    steps = max(1, round(budget / (recipe.batch_size * ModelConfig(**recipe.model).training_flops())))
    warmup = math.ceil(steps * config.optim.warmup_steps / config.steps)
    never = {"eval_every": 0, "save_every": steps, "keep_every": 0, "keep_last": 1}
    return stages.changed(recipe, steps=steps, optim__warmup_steps=warmup, log_every=max(1, steps // 20), **never)


def measure(recipe: Recipe, workdir: pathlib.Path, budget: float, size: str, seed: int) -> dict:
    """Train one model for its budget and return its size, its images and its loss on the held-out images."""
    recipe = stages.changed(stages.with_palette(recipe, workdir), seed=seed)
    trained = stages.pretrain(recipe, workdir / "models" / f"{budget:.3g}-{size}-{seed}")
    images = recipe.steps * recipe.batch_size
    each = ModelConfig(**recipe.model).training_flops()
    found = {"budget": budget, "size": size, "seed": seed, "parameters": trained["parameters"], "images": images, "flops": images * each}
    found |= {"flops_per_image": each, "steps": recipe.steps, "learning_rate": recipe.optim.learning_rate, "positions": recipe.model.positions}
    return found | {"nats_per_pixel": trained["nats_per_pixel"], "held_out_images": trained["images"]}


def summary(rows: list[dict]) -> dict:
    """Return {budgets, exponents, cost, draws}: each budget with its points and the parabola's optimum, and the exponents of the optima over the budgets.

    `cost` is (slope, constant) of log FLOPs of an image against log parameters, over all sizes: what an optimal size between those that were trained costs.
    """
    generator = np.random.default_rng(DRAW_SEED)
    rows, flops = sorted(rows, key=lambda row: (row["parameters"], row["seed"])), sorted({row["budget"] for row in rows})
    by_budget = [[row for row in rows if row["budget"] == budget] for budget in flops]
    cost = _cost(rows)
    budgets = [{"budget": points[0]["budget"], "points": points} | optimum(points, cost) for points in by_budget]
    drawn = [_drawn_optima(found, generator) for found in budgets]
    for found, sizes in zip(budgets, drawn, strict=True):
        if sizes is not None:
            found |= {"interval": np.exp(np.percentile(sizes, ENDS)).tolist(), "at_an_end": float(np.mean(np.isin(sizes, _ends(found))))}
    return {"budgets": budgets, "exponents": {name: exponent(budgets, drawn, name, cost) for name in EXPONENTS}, "cost": list(cost), "draws": DRAWS}


def optimum(points: list[dict], cost: np.ndarray) -> dict:
    """Return {fit, parameters, images, nats_per_pixel, why} of a budget; without an optimum inside the sizes, None for the numbers, and `why`."""
    size, loss = _size_and_loss(points)
    nothing = {"fit": None, "parameters": None, "images": None, "nats_per_pixel": None}
    if len(set(size)) < FITTED:
        return nothing | {"why": f"{len(set(size))} sizes, a parabola needs {FITTED}"}
    fit = np.polyfit(size, loss, 2)
    best, why = _minimum(fit, size)
    found = nothing | {"fit": fit.tolist(), "why": why}
    if why:
        return found
    images = points[0]["budget"] / math.exp(np.polyval(cost, best))
    return found | {"parameters": math.exp(best), "images": images, "nats_per_pixel": float(np.polyval(fit, best))}


def exponent(budgets: list[dict], drawn: list[np.ndarray | None], name: str, cost: np.ndarray) -> dict:
    """Return {exponent, interval, budgets, why} of the optima of `name` against the budget, a straight line in logarithms.

    The interval is that of the bootstrap, in which an optimum outside the sizes counts as one at their end.
    """
    used = [number for number, found in enumerate(budgets) if found["parameters"]]
    if len(used) < 2:
        return {"exponent": None, "interval": None, "budgets": len(used), "why": f"{len(used)} of {len(budgets)} budgets have an optimum inside the sizes"}
    flops = np.log([budgets[number]["budget"] for number in used])
    slope = np.polyfit(flops, np.log([budgets[number][name] for number in used]), 1)[0]
    optima = np.stack([np.asarray(drawn[number]) for number in used])
    if name == "images":
        optima = flops[:, None] - np.polyval(cost, optima)
    slopes = np.polyfit(flops, optima, 1)[0]
    return {"exponent": float(slope), "interval": np.percentile(slopes, ENDS).tolist(), "budgets": len(used), "why": ""}


def _budget(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        budget = math.nan
    if not 0 < budget < math.inf:
        raise ValueError(f"--budgets={text} must be numbers of FLOPs above 0, for example 1e11,3e11,1e12")
    return budget


def _size_and_loss(points):
    return np.log([point["parameters"] for point in points]), np.array([point["nats_per_pixel"] for point in points])


def _minimum(fit, size):
    """The log parameters where a parabola is least, and why it is no optimum ("" if it is one); outside the sizes it is the end that is lower."""
    low, high = size.min(), size.max()
    best = -fit[1] / (2 * fit[0]) if fit[0] > 0 else math.nan
    if low < best < high:
        return best, ""
    end = min(low, high, key=lambda at: np.polyval(fit, at))
    return end, f"the loss {'still falls' if fit[0] > 0 else 'is least'} at the {'smallest' if end == low else 'largest'} size"


def _cost(rows):
    """A straight line through log FLOPs of an image against log parameters, (slope, constant); one size alone costs as much for all."""
    sizes = {row["parameters"]: row["budget"] / row["images"] for row in rows}
    return np.polyfit(*np.log(np.array(list(sizes.items()))).T, min(1, len(sizes) - 1))


def _ends(found):
    size, _ = _size_and_loss(found["points"])
    return size.min(), size.max()


def _drawn_optima(found, generator):
    """Log of the optimal parameters in each draw of the bootstrap: the fit plus residuals drawn anew, which are scaled for the numbers that were fitted."""
    if found["parameters"] is None:
        return None
    size, loss = _size_and_loss(found["points"])
    fitted = np.polyval(found["fit"], size)
    residuals = (loss - fitted) * math.sqrt(len(loss) / max(1, len(loss) - FITTED))
    drawn = fitted + generator.choice(residuals, (DRAWS, len(loss)))
    return np.array([_minimum(fit, size)[0] for fit in np.polyfit(size, drawn.T, 2).T])


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each budget and size, each budget's optimum and the exponents."""
    lines = ["| FLOPs | size | parameters | images | steps | learning rate | loss, nats per pixel |", "|---|---|---|---|---|---|---|"]
    for found in summary["budgets"]:
        for size in dict.fromkeys(point["size"] for point in found["points"]):
            points = [point for point in found["points"] if point["size"] == size]
            losses, first = sweep.spread([point["nats_per_pixel"] for point in points], 4), points[0]
            counts = " | ".join(f"{first[name]:,}" for name in ("parameters", "images", "steps"))
            lines.append(f"| {found['budget']:.2g} | {size} | {counts} | {first['learning_rate']:.3g} | {losses} |")
    return lines + [optimum_text(found) for found in summary["budgets"]] + [exponent_text(summary, name) for name in EXPONENTS]


def optimum_text(found: dict) -> str:
    """Return the optimum of a budget, or why there is none, as text."""
    if found["parameters"] is None:
        return f"{found['budget']:.2g} FLOPs: no optimum inside the sizes, {found['why']}"
    low, high = found["interval"]
    ratio = found["images"] * found["points"][0]["positions"] / found["parameters"]
    seen = f"{found['images']:,.0f} images, {ratio:,.0f} tokens per parameter, {found['nats_per_pixel']:.3f} nats per pixel"
    edge = f"; {found['at_an_end']:.0%} of the draws end at the smallest or largest size" if found["at_an_end"] > 0.025 else ""
    return f"{found['budget']:.2g} FLOPs: {found['parameters']:,.0f} parameters (95 %: {low:,.0f} to {high:,.0f}{edge}), {seen}"


def exponent_text(summary: dict, name: str) -> str:
    """Return an exponent with its interval, or why there is none, as text."""
    found = summary["exponents"][name]
    if found["exponent"] is None:
        return f"{EXPONENTS[name]}: no exponent, {found['why']}"
    low, high = found["interval"]
    return f"{EXPONENTS[name]} grow as FLOPs^{found['exponent']:.2f} (95 %: {low:.2f} to {high:.2f}, {found['budgets']} budgets)"


def answer(summary: dict) -> str:
    """Return the exponents and the optimum of the largest budget as a short text."""
    return "; ".join([*(exponent_text(summary, name) for name in EXPONENTS), optimum_text(summary["budgets"][-1])])


def draw(summary: dict) -> Any:
    """Draw loss against parameters with a parabola for each budget, and the optimal parameters and images against the budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    for number, found in enumerate(summary["budgets"]):
        _draw_budget(left, number, found)
    sizes = sorted({point["parameters"] for found in summary["budgets"] for point in found["points"]})
    left.set(xscale="log", xlabel="parameters", ylabel="loss on held-out images, nats per pixel", title="at equal FLOPs, * the optimum with its 95 % interval")
    _name_ticks(left.xaxis, {size: _short(size) for size in sizes})
    left.tick_params(axis="x", labelrotation=45)
    left.grid(alpha=0.25)
    _draw_optima(right, summary)
    figure.suptitle("\n".join(exponent_text(summary, name) for name in EXPONENTS), fontsize=11)
    marks.legend_below(figure, [left, right], ncols=3)
    return figure


def _draw_budget(axes, number, found):
    size, loss = _size_and_loss(found["points"])
    style = marks.style_of(number)
    axes.plot(np.exp(size), loss, style["marker"], color=style["color"], markersize=6, label=_budget_name(found))
    if found["fit"]:
        grid = np.linspace(size.min(), size.max(), 100)
        axes.plot(np.exp(grid), np.polyval(found["fit"], grid), color=style["color"], linewidth=1.2)
    if found["parameters"]:
        ends = np.abs(np.array([found["interval"]]) - found["parameters"]).T
        axes.errorbar(
            found["parameters"], found["nats_per_pixel"], xerr=ends, fmt="*", color=style["color"], markersize=14, markeredgecolor="black", capsize=3, zorder=5
        )


def _draw_optima(axes, summary):
    used = [found for found in summary["budgets"] if found["parameters"]]
    axes.set(xlabel="budget, FLOPs", ylabel="parameters, and images", title=f"the optimum of {len(used)} of {len(summary['budgets'])} budgets")
    axes.grid(alpha=0.25)
    if not used:  # an empty panel has no logarithms
        return
    flops = np.array([found["budget"] for found in used])
    for number, name in enumerate(EXPONENTS):
        style, values = marks.style_of(len(summary["budgets"]) + number), np.array([found[name] for found in used])
        label = "parameters of the optimum, 95 % interval" if name == "parameters" else "images that it sees"
        ends = np.abs(np.array([found["interval"] for found in used]).T - values) if name == "parameters" else None
        axes.errorbar(flops, values, ends, fmt=style["marker"], color=style["color"], capsize=3, label=label)
        if len(used) > 1:
            axes.plot(flops, np.exp(np.polyval(np.polyfit(np.log(flops), np.log(values), 1), np.log(flops))), color=style["color"], linewidth=1.2)
    axes.set(xscale="log", yscale="log")
    _name_ticks(axes.xaxis, {found["budget"]: f"{found['budget']:.2g}" for found in used})
    _name_ticks(axes.yaxis, {count: _short(count) for digit in (1, 2, 5) for count in digit * 10.0 ** np.arange(2, 12)})
    axes.set(xlim=(flops.min() / 1.3, flops.max() * 1.3), ylim=_around([found[name] for found in used for name in EXPONENTS]))


def _name_ticks(axis, names):
    """Label these values of an axis alone."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(names)))
    axis.set_major_formatter(FixedFormatter(list(names.values())))
    axis.set_minor_locator(NullLocator())


def _around(values):
    """Ends of an axis a factor beyond these values."""
    return min(values) / 1.8, max(values) * 1.8


def _short(count):
    return f"{count / 1e6:.3g}M" if count >= 1e6 else f"{count / 1e3:.3g}k"


def _budget_name(found):
    return f"{found['budget']:.2g} FLOPs" + ("" if found["parameters"] else ": no optimum inside the sizes")


FIGURE = sweep.Figure("isoflop", summary, table, draw)


def _flags(flags):
    return {
        "budgets": flags.DEFINE_list("budgets", ["1e11", "3e11", "1e12"], "budgets of the training runs in FLOPs, a list"),
        "sizes": flags.DEFINE_list("sizes", ["2x16", "2x32", "3x48", "4x64", "5x80"], "sizes, a list of LAYERSxWIDTH or LAYERSxWIDTH@LEARNING_RATE"),
        "seeds": flags.DEFINE_integer("seeds", 1, "number of trainings of each size at each budget", lower_bound=1),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_budgets, _flags)
