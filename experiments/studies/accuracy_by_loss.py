"""Does a lower loss mean better features, and does a larger model probe better at the same loss? (The paper's figure 3 and section 4.3.)

    python -m experiments.studies.accuracy_by_loss --config=configs/cifar10_16.py --workdir=runs/loss --sizes=4x64,6x96,8x128 --results=experiments/results

Pretrains the recipe with each seed at each of --sizes, which are layers x width with the recipe's head size; 8x128@0.001 also sets the learning rate. Each
run has --snapshots. Each snapshot has twice the steps of the one before, and the last is the end of the run. Two things are measured at each snapshot: the
loss on the probed test images, and which of these images a linear probe classifies correctly, at the layer that is best on validation images. The verdict
compares neighbouring sizes at losses that both reach, on the same test images. This is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
import re
from functools import partial

import numpy as np

from experiments.studies import stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.probing.lbfgs_probe import standardise
from igpt_jax.probing.logistic import fit_logistic, predict
from igpt_jax.probing.splits import Splits, vote
from igpt_jax.probing.store import read_description, read_layer
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.types import PathLike, Recipe

CLAIM = "at equal loss the larger model probes better"
LOSSES = 16  # number of losses at which two sizes are compared, evenly spaced over the range that both reach
RESAMPLES = 1_000
COLOURS = ("#6baed6", "#4292c6", "#2171b5", "#08519c", "#08204d")  # from the smallest size to the largest
MARKS = "os^Dv"


def sweep_losses(config: Recipe, workdir: PathLike, sizes: list[str], seeds: int, snapshots: int, probing: stages.Probing, **options) -> dict | None:
    """Run the jobs, one for each size and seed, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    if probing.solver != "lbfgs":
        raise ValueError(f"--solver={probing.solver} gives only an accuracy, and this study needs the prediction for each test image: leave the flag out")
    recipes = {size: recipe_of(config, size, snapshots) for size in sizes}
    jobs = [
        sweep.Job(f"{size}-{seed}".replace("@", "-"), partial(train_and_probe, recipe, workdir, size, seed, snapshots, probing))
        for size, recipe in recipes.items()
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, {"snapshots": snapshots} | dataclasses.asdict(probing), workdir, **options)


def recipe_of(config: Recipe, size: str, snapshots: int) -> Recipe:
    """Return the recipe at a size "LAYERSxWIDTH" or "LAYERSxWIDTH@RATE", with a checkpoint at every snapshot; ValueError if it cannot be made."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:@([\d.e-]+))?", size)
    if not match or not int(match[1]) * int(match[2]):
        raise ValueError(f"--sizes={size} must be LAYERSxWIDTH or LAYERSxWIDTH@LEARNING_RATE, for example 8x128 or 8x128@0.001")
    layers, width, head = int(match[1]), int(match[2]), config.model.width // config.model.heads
    if width % head:
        raise ValueError(f"--sizes={size}: width {width} is not a multiple of the recipe's head size {head} (width {config.model.width})")
    every = config.steps // 2 ** (snapshots - 1)
    if every < 1 or config.steps % 2 ** (snapshots - 1):
        raise ValueError(f"config.steps={config.steps} must be a multiple of {2 ** (snapshots - 1)}: --snapshots={snapshots} halves it")
    unroll = layers if config.model.unroll == config.model.layers else config.model.unroll
    changes = {"model__layers": layers, "model__width": width, "model__heads": width // head, "model__unroll": unroll}
    changes |= {"optim__learning_rate": float(match[3])} if match[3] else {}
    return stages.changed(config, save_every=every, keep_every=every, **changes)


def train_and_probe(recipe: Recipe, workdir: pathlib.Path, size: str, seed: int, snapshots: int, probing: stages.Probing) -> dict:
    """Pretrain one model and measure every snapshot of it."""
    home = workdir / "models" / f"{size}-{seed}"
    recipe = stages.changed(stages.with_palette(recipe, workdir), seed=seed)
    images = probing.images(recipe, recipe.data.source, workdir / "images/probed")
    trained = stages.pretrain(recipe, home)
    points = []
    for step in (recipe.steps // 2**halves for halves in reversed(range(snapshots))):
        place, measured = home / "checkpoints" / str(step), home / "snapshots" / str(step)
        loss = stages.compute_once(measured / "loss.json", partial(evaluate_checkpoint, place, "test", images.source))
        probed = probing.layers(place, images, measured)
        right = stages.compute_once(measured / "right.json", partial(right_images, measured, probed["best"]))
        layers = [{key: row[key] for key in ("layer", "validation", "test")} for row in probed["layers"]]
        points.append({"step": step, "loss": loss["nats_per_pixel"], "best_layer": probed["best"]["layer"], "layers": layers} | right)
    return {"size": size, "parameters": trained["parameters"], "seed": seed, "validation": trained["nats_per_pixel"], "points": points}


def right_images(directory: pathlib.Path, best: dict) -> dict:
    """Return which test images the probe of the best layer classifies correctly, as `pack` does; it is fitted as the final probe of igpt_jax.probe."""
    images = Splits(directory, read_description(directory))
    samples = images.samples(lambda split, mask: read_layer(directory, split, best["layer"], mask)[None])
    training, validation, test = standardise(*samples)
    features_1BD, labels_B = np.concatenate([training.features, validation.features], axis=1), np.concatenate([training.labels, validation.labels])
    start = np.zeros((1, 1, images.classes, features_1BD.shape[-1] + 1), np.float32)
    weights = fit_logistic(features_1BD, labels_B[None], start, np.full((1, 1), best["C"], np.float32)).weights
    predicted_MB = np.stack([np.asarray(predict(weights, features))[0, 0] for features in (test.features, *test.more)])
    return pack(vote(predicted_MB) == test.labels)


def pack(right_B: np.ndarray) -> dict:
    """Return bool [B] for JSON: {accuracy, images: B, right: bits in hex}."""
    return {"accuracy": float(right_B.mean()), "images": len(right_B), "right": np.packbits(right_B).tobytes().hex()}


def unpack(point: dict) -> np.ndarray:
    """Return bool [B] from what `pack` returned."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(point["right"]), np.uint8), count=point["images"]).astype(bool)


def summary(rows: list[dict]) -> dict:
    """Return {curves, verdict}; each curve holds the points of one size by seed, the smallest size first."""
    curves: dict = {}
    for row in sorted(rows, key=lambda row: row["parameters"]):
        curve = curves.setdefault(row["size"], {"size": row["size"], "parameters": row["parameters"], "seeds": [], "runs": []})
        curve["seeds"].append(row["seed"])
        curve["runs"].append([{key: point[key] for key in ("step", "loss", "accuracy", "best_layer", "images", "right")} for point in row["points"]])
    return {"curves": list(curves.values()), "verdict": verdict(list(curves.values()))}


def verdict(curves: list[dict]) -> dict:
    """Judge CLAIM for each pair of neighbouring sizes and for all of them: confirmed, not confirmed, or too small to tell.

    For a pair the claim is confirmed if the 95 % interval of the larger size's gain is above 0, and not confirmed if it is below 0. Overall it is confirmed
    if it is for every pair that can be compared, and not confirmed if one pair does not confirm it. `curves` are those of `summary`, smallest first.
    """
    pairs = [compare(smaller, larger) for smaller, larger in zip(curves, curves[1:], strict=False)]
    verdicts = {pair["verdict"] for pair in pairs if pair["losses"]}
    if "not confirmed" in verdicts:
        overall = "not confirmed"
    else:
        overall = "confirmed" if verdicts == {"confirmed"} else "too small to tell"
    return {"claim": CLAIM, "verdict": overall, "pairs": pairs}


def compare(smaller: dict, larger: dict) -> dict:
    """Return the gain in accuracy of the larger model, averaged over losses that all runs of both sizes reach, with its 95 % interval.

    Accuracies between snapshots are interpolated. The interval is a bootstrap over test images, the same for both sizes, and over the seeds of each size.
    The deviation of n seeds is multiplied by sqrt(n / (n - 1)), because resampling few seeds underestimates it.
    """
    pair = {"smaller": smaller["size"], "larger": larger["size"], "losses": None, "gain": None, "interval": None, "verdict": "too small to tell"}
    spans = [[point["loss"] for point in run] for curve in (smaller, larger) for run in curve["runs"]]
    least, most = max(map(min, spans)), min(map(max, spans))
    if least >= most:
        return pair | {"why": f"no loss is reached by all runs of both: the nearest are {most:.3f} and {least:.3f}"}
    small_RB, large_RB = (np.stack([_right_at(run, np.linspace(least, most, LOSSES)) for run in curve["runs"]]) for curve in (smaller, larger))
    generator, gains = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        images = generator.integers(small_RB.shape[1], size=small_RB.shape[1])
        gains.append(_redrawn(large_RB[:, images].mean(axis=1), generator) - _redrawn(small_RB[:, images].mean(axis=1), generator))
    interval = np.percentile(gains, (2.5, 97.5)).tolist()
    pair |= {"losses": [least, most], "gain": float(large_RB.mean() - small_RB.mean()), "interval": interval}
    if min(len(small_RB), len(large_RB)) < 2:
        return pair | {"why": "one seed does not tell how runs vary: give --seeds=2 or more"}
    if interval[0] <= 0 <= interval[1]:
        return pair | {"why": "the interval holds 0"}
    return pair | {"verdict": "confirmed" if interval[0] > 0 else "not confirmed", "why": f"the interval lies {'above' if interval[0] > 0 else 'below'} 0"}


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each size and snapshot, and the verdict."""
    lines = ["| size | parameters | seeds | step | loss, nats per pixel | linear probe, test accuracy, % |", "|---|---|---|---|---|---|"]
    for curve in summary["curves"]:
        for points in zip(*curve["runs"], strict=True):
            losses, accuracies = ([point[key] for point in points] for key in ("loss", "accuracy"))
            shown = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
            means = f"{np.mean(losses):.3f} | {100 * np.mean(accuracies):.1f} ({shown})"
            lines.append(f"| {curve['size']} | {curve['parameters']:,} | {len(points)} | {points[0]['step']} | {means} |")
    for pair in summary["verdict"]["pairs"]:
        lines.append(f"{pair['larger']} against {pair['smaller']}: {_gain(pair)}{pair['verdict']}, {pair['why']}")
    return [*lines, f"{CLAIM}: {summary['verdict']['verdict']}"]


def draw(summary: dict):
    """Draw accuracy against loss, which falls to the right: a line for each size and a faint line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    tones = np.linspace(0, len(COLOURS) - 1, len(summary["curves"])).round().astype(int)
    for number, curve in enumerate(summary["curves"]):
        colour, mark = COLOURS[tones[number]], MARKS[number % len(MARKS)]
        losses, accuracies = (np.array([[point[key] for point in run] for run in curve["runs"]]) for key in ("loss", "accuracy"))
        if len(losses) > 1:
            for loss, accuracy in zip(losses, accuracies, strict=True):
                axes.plot(loss, 100 * accuracy, "-", color=colour, alpha=0.4, linewidth=0.8)
        label = f"{curve['size'].partition('@')[0]}, {_count(curve['parameters'])} parameters, {len(losses)} seed{'s' * (len(losses) > 1)}"
        axes.plot(losses.mean(axis=0), 100 * accuracies.mean(axis=0), mark + "-", color=colour, markeredgecolor="black", markersize=7, label=label)
    axes.invert_xaxis()  # as in the paper: training goes to the right
    axes.set(xlabel="loss on test images, nats per pixel (falling)", ylabel="linear probe at the best layer, test accuracy, %")
    axes.set_title(f"Probe accuracy against loss\n{CLAIM}: {summary['verdict']['verdict']}", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    return figure


def _right_at(run, losses):
    """Return for each test image how often it is right in one run at these losses, interpolated between snapshots: float [B]."""
    points = sorted(run, key=lambda point: point["loss"])
    shares = [np.interp(losses, [point["loss"] for point in points], unit).mean() for unit in np.eye(len(points))]  # weight of each snapshot
    return sum(share * unpack(point) for share, point in zip(shares, points, strict=True))


def _redrawn(accuracy_R, generator):
    """Return the mean accuracy of seeds drawn with replacement, its deviation widened as `compare` says."""
    count, mean = len(accuracy_R), accuracy_R.mean()
    return mean + np.sqrt(count / max(1, count - 1)) * (accuracy_R[generator.integers(count, size=count)].mean() - mean)


def _gain(pair):
    if pair["gain"] is None:
        return ""
    low, high = pair["interval"]
    return f"{100 * pair['gain']:+.1f} points at equal loss, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; "


def _count(parameters):
    return f"{parameters / 1e6:.3g}M" if parameters >= 1e6 else f"{parameters / 1e3:.3g}k"


FIGURE = sweep.Figure("accuracy_by_loss", summary, table, draw)


def _flags(flags):
    return {
        "sizes": flags.DEFINE_list("sizes", ["4x64", "6x96", "8x128"], "sizes of the models, a list of LAYERSxWIDTH or LAYERSxWIDTH@LEARNING_RATE"),
        "seeds": flags.DEFINE_integer("seeds", 2, "number of pretrainings of each size", lower_bound=1),
        "snapshots": flags.DEFINE_integer("snapshots", 4, "snapshots of each pretraining, each at twice the steps of the one before", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_losses, _flags)
