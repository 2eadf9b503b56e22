"""README's table of the paper's findings: confirmed here, not confirmed, or too small to tell, from the JSON of the studies alone.

A difference of accuracies, in points, is too small to tell where it is within two standard errors. These are of the test images alone, so seeds, which
vary too, make a verdict no stronger than its row says. experiments/report/readme.py puts the block there.
"""

import math
import pathlib

from experiments.report.results_table import model_name, objective_name, percent, read

BETTER = "next pixel probes better than masked pixels (figure 4)"


def block(results: pathlib.Path) -> str:
    """A row for each finding and each study that looked at it; a study that was not run has none."""
    lines = ["| the paper's finding | here | by how much |", "|---|---|---|"]
    for name, found in read(results, STUDIES):
        lines += [f"| {what} | {verdict} | {told}, [{name}](experiments/results/{name}.json) |" for what, verdict, told in STUDIES[name](found)]
    note = "Points of test accuracy +- standard error over test images; within two of them it is too small to tell."
    return "\n".join([*lines, "", note, ""])


def judge(difference: float, error: float) -> str:
    """What a difference that the paper finds positive says, its standard error given."""
    return "too small to tell" if abs(difference) <= 2 * error else "confirmed" if difference > 0 else "not confirmed"


def _compared(first, second, images):
    """(verdict, points) of one accuracy above another on so many images."""
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / images)
    return judge(first - second, error), f"{100 * (first - second):+.1f} +- {100 * error:.1f} points"


def _layers(found):
    for one in found["curves"]:
        best, last = one["best"]["test"], one["mean"][-1]
        verdict, points = _compared(best, last, one["counts"]["test"])
        where = f"{one['data']}, {model_name(one)}: layer {one['best']['layer']} of {one['layers'][-1]} ({percent(best)}) above the last ({percent(last)})"
        yield "the best layer lies inside (figure 2)", verdict if one["best"]["inside"] else "not confirmed", f"{where}: {points}"


def _losses(found):
    for pair in found["verdict"]["pairs"]:
        gain = f" {100 * pair['gain']:+.1f} points," if pair["gain"] is not None else ""
        told = f"CIFAR-10 (JPEG q75), {pair['larger']} above {pair['smaller']} (layers x width):{gain} {pair['why']}"
        yield "at equal loss the larger model probes better (figure 3)", pair["verdict"], told


def _objectives(found):
    images, data = found["test_images"], f"Fashion-MNIST, {found['labels_per_class']} labels of each class"
    probe = {name: one["best"]["test"] for name, one in found["probe"].items()}
    tuned = {one["objective"]: one["mean"] for one in found["summary"] if (one["start"], one["loss"]) == ("pretrained", "joint")}
    for name in probe:
        verdict, points = _compared(tuned[name], probe[name], images)
        yield "fine-tuning is above the probe (section 4.4)", verdict, f"{data}, {objective_name(name)}: {points}"
    verdict, points = _compared(probe["autoregressive"], probe["bert"], images)
    yield BETTER, verdict, f"{data}: {points}"
    shares = [*probe.values(), *tuned.values()]
    closed = probe["autoregressive"] - probe["bert"] - (tuned["autoregressive"] - tuned["bert"])
    error = math.sqrt(sum(share * (1 - share) for share in shares) / images)
    yield "fine-tuning closes part of that gap (figure 4)", judge(closed, error), f"{data}: {100 * closed:+.1f} +- {100 * error:.1f} points"


def _few(found):
    means = {(one["objective"], one["way"]): {size: sum(values) / len(values) for size, values in one["accuracies"].items()} for one in found["curves"]}
    images = found["jobs"][0]["found"]["counts"]["test"]
    for size, ours in means["autoregressive", "linear probe"].items():
        verdict, points = _compared(ours, means["bert", "linear probe"][size], images)
        yield BETTER, verdict, f"CIFAR-10 (JPEG q75), {size} labels of each class: {points}"


STUDIES = {
    "accuracy_by_layer": _layers,
    "twelve_layers/accuracy_by_layer": _layers,
    "accuracy_by_loss": _losses,
    "objectives": _objectives,
    "low_data": _few,
}
