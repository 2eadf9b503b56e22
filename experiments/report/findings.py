"""README's table of the paper's findings: confirmed here, not confirmed, or too small to tell.

Everything is read from the JSON files of the studies. A difference of accuracies is too small to tell if it is within two standard errors. The standard
errors are of the test images alone. Seeds vary too, so a verdict is no stronger than its row says. `python -m experiments.report.readme` writes the block.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from experiments.report.results_table import model_name, objective_name, percent, read

BETTER = "next pixel probes better than masked pixels (figure 4)"


class Finding(NamedTuple):
    """One row of the table."""

    claim: str  # of the paper
    verdict: str
    evidence: str  # which data and models, and the difference


def block(results: pathlib.Path) -> str:
    """Return the table: the rows of each study that was run."""
    lines = ["| the paper's finding | here | by how much |", "|---|---|---|"]
    for name, study in read(results, STUDIES):
        lines += [f"| {row.claim} | {row.verdict} | {row.evidence}, [{name}](experiments/results/{name}.json) |" for row in STUDIES[name](study)]
    note = "Points of test accuracy +- standard error over test images; within two of them it is too small to tell."
    return "\n".join([*lines, "", note, ""])


def judge(difference: float, error: float) -> str:
    """Return the verdict on a difference that is positive in the paper, from its standard error."""
    return "too small to tell" if abs(difference) <= 2 * error else "confirmed" if difference > 0 else "not confirmed"


def compare(higher: float, lower: float, images: int) -> tuple[str, str]:
    """Return (verdict, points) for the claim that the first of two accuracies, measured on `images` test images, is the higher one."""
    error = math.sqrt((higher * (1 - higher) + lower * (1 - lower)) / images)
    return judge(higher - lower, error), points(higher - lower, error)


def points(difference: float, error: float) -> str:
    """Return a difference of accuracies and its standard error, in points, as text."""
    return f"{100 * difference:+.1f} +- {100 * error:.1f} points"


def accuracy_by_layer(study: dict) -> Iterator[Finding]:
    """Compare the best layer with the last one."""
    for curve in study["curves"]:
        best, last = curve["best"]["test"], curve["mean"][-1]
        verdict, difference = compare(best, last, curve["counts"]["test"])
        layer = f"layer {curve['best']['layer']} of {curve['layers'][-1]}"
        evidence = f"{curve['data']}, {model_name(curve)}: {layer} ({percent(best)}) above the last ({percent(last)}): {difference}"
        yield Finding("the best layer lies inside (figure 2)", verdict if curve["best"]["inside"] else "not confirmed", evidence)


def accuracy_by_loss(study: dict) -> Iterator[Finding]:
    """Repeat the verdicts of the study, which compares neighbouring sizes at equal loss."""
    for pair in study["verdict"]["pairs"]:
        gain = f" {100 * pair['gain']:+.1f} points," if pair["gain"] is not None else ""
        evidence = f"CIFAR-10 (JPEG q75), {pair['larger']} above {pair['smaller']} (layers x width):{gain} {pair['why']}"
        yield Finding("at equal loss the larger model probes better (figure 3)", pair["verdict"], evidence)


def objectives(study: dict) -> Iterator[Finding]:
    """Compare fine-tuning with the probe, the two objectives, and the gap between the objectives before and after fine-tuning."""
    images, data = study["test_images"], f"Fashion-MNIST, {study['labels_per_class']} labels of each class"
    probed = {objective: probe["best"]["test"] for objective, probe in study["probe"].items()}
    tuned = {row["objective"]: row["mean"] for row in study["summary"] if (row["start"], row["loss"]) == ("pretrained", "joint")}
    for objective in probed:
        verdict, difference = compare(tuned[objective], probed[objective], images)
        yield Finding("fine-tuning is above the probe (section 4.4)", verdict, f"{data}, {objective_name(objective)}: {difference}")
    verdict, difference = compare(probed["autoregressive"], probed["bert"], images)
    yield Finding(BETTER, verdict, f"{data}: {difference}")
    closed = probed["autoregressive"] - probed["bert"] - (tuned["autoregressive"] - tuned["bert"])
    error = math.sqrt(sum(accuracy * (1 - accuracy) for accuracy in (*probed.values(), *tuned.values())) / images)
    yield Finding("fine-tuning closes part of that gap (figure 4)", judge(closed, error), f"{data}: {points(closed, error)}")


def low_data(study: dict) -> Iterator[Finding]:
    """Compare the probes of the two objectives at each number of labels."""
    probes = {curve["objective"]: curve["accuracies"] for curve in study["curves"] if curve["way"] == "linear probe"}
    images = study["jobs"][0]["found"]["counts"]["test"]
    for labels, accuracies in probes["autoregressive"].items():
        verdict, difference = compare(_mean(accuracies), _mean(probes["bert"][labels]), images)
        yield Finding(BETTER, verdict, f"CIFAR-10 (JPEG q75), {labels} labels of each class: {difference}")


def _mean(values):
    return sum(values) / len(values)


STUDIES = {  # file in experiments/results/ -> its rows
    "accuracy_by_layer": accuracy_by_layer,
    "twelve_layers/accuracy_by_layer": accuracy_by_layer,
    "accuracy_by_loss": accuracy_by_loss,
    "objectives": objectives,
    "low_data": low_data,
}
