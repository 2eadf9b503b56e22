"""What a difference of accuracies says of a finding, and what it is read from."""

import itertools
import json

import pytest

from experiments.report import findings


def rows(tmp_path, name, found):
    """(finding, verdict, by how much) of each row of a study, the only one that was run."""
    path = tmp_path / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))
    lines = [line.strip("| ").split(" | ") for line in findings.block(tmp_path).splitlines()[2:-2]]
    link = f", [{name}](experiments/results/{name}.json)"
    assert all(evidence.endswith(link) for _, _, evidence in lines)
    return [(what, verdict, evidence.removesuffix(link)) for what, verdict, evidence in lines]


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.0201, "confirmed"), (0.02, "too small to tell"), (0, "too small to tell"), (-0.02, "too small to tell"), (-0.0201, "not confirmed")],
)
def test_two_standard_errors_decide(difference, verdict):
    assert findings.judge(difference, 0.01) == verdict


def test_more_images_tell_a_smaller_difference():
    assert findings.compare(0.52, 0.5, 100) == ("too small to tell", "+2.0 +- 7.1 points")
    assert findings.compare(0.52, 0.5, 10_000) == ("confirmed", "+2.0 +- 0.7 points")
    assert findings.compare(0.9, 0.95, 100) == ("too small to tell", "-5.0 +- 3.7 points")  # the square root of (0.09 + 0.0475) / 100
    assert findings.compare(0.9, 0.95, 10_000) == ("not confirmed", "-5.0 +- 0.4 points")


@pytest.mark.parametrize("name", ["accuracy_by_layer", "twelve_layers/accuracy_by_layer"])
def test_a_best_layer_at_an_end_confirms_nothing(tmp_path, name):
    """The accuracies are of the test images, and so is their number."""
    curve = {
        "data": "some images", "objective": "bert", "model": {"layers": 8, "width": 64}, "seeds": [0, 1], "layers": list(range(9)),
        "mean": [*[0.3] * 8, 0.5], "validation": [*[0.4] * 8, 0.8], "counts": {"train": 100, "validation": 10, "test": 10_000},
    }  # fmt: skip
    bests = [({"layer": 3, "test": 0.55, "inside": True}, "confirmed"), ({"layer": 0, "test": 0.55, "inside": False}, "not confirmed")]
    bests += [({"layer": 3, "test": 0.501, "inside": True}, "too small to tell"), ({"layer": 3, "test": 0.45, "inside": True}, "not confirmed")]
    found = rows(tmp_path, name, {"curves": [curve | {"best": best} for best, _ in bests]})
    assert [(what, verdict) for what, verdict, _ in found] == [("the best layer lies inside (figure 2)", verdict) for _, verdict in bests]
    model = "some images, masked pixels, 8 layers of width 64, 2 seeds"
    assert found[0][2] == f"{model}: layer 3 of 8 (55.0 %) above the last (50.0 %): +5.0 +- 0.7 points"
    assert found[3][2] == f"{model}: layer 3 of 8 (45.0 %) above the last (50.0 %): -5.0 +- 0.7 points"


def test_equal_losses_say_what_the_study_said(tmp_path):
    pair = {"smaller": "2x32", "larger": "4x64", "gain": 0.271, "interval": [0.105, 0.438], "verdict": "confirmed", "why": "the interval lies above 0"}
    none = pair | {"gain": None, "interval": None, "verdict": "too small to tell", "why": "no loss is reached by both"}
    first, second, third = rows(tmp_path, "accuracy_by_loss", {"verdict": {"pairs": [pair, none, pair | {"gain": 0.0}]}})
    where = "CIFAR-10 (JPEG q75), 4x64 above 2x32 (layers x width):"
    assert first == ("at equal loss the larger model probes better (figure 3)", "confirmed", f"{where} +27.1 points, the interval lies above 0")
    assert second[1:] == ("too small to tell", f"{where} no loss is reached by both") and f"{where} +0.0 points," in third[2]


def test_fine_tuning_is_compared_pretrained_with_the_joint_loss(tmp_path):
    """Four accuracies on 25 test images: gaps of the probes and of the fine-tuned models, and how much the second is smaller."""
    means = {("autoregressive", "pretrained", "joint"): 0.8, ("bert", "pretrained", "joint"): 0.76}
    kinds = list(itertools.product(("bert", "autoregressive"), ("scratch", "pretrained"), ("classification", "joint")))
    found = rows(tmp_path, "objectives", {
        "test_images": 25, "labels_per_class": 200,
        "probe": {"autoregressive": {"best": {"test": 0.7, "validation": 0.1}}, "bert": {"best": {"test": 0.5, "validation": 0.9}}},
        "summary": [dict(zip(("objective", "start", "loss"), kind, strict=True), mean=means.get(kind, 0.1)) for kind in kinds],
    })  # fmt: skip
    data = "Fashion-MNIST, 200 labels of each class"
    assert found == [
        ("fine-tuning is above the probe (section 4.4)", "too small to tell", f"{data}, next pixel: +10.0 +- 12.2 points"),
        ("fine-tuning is above the probe (section 4.4)", "too small to tell", f"{data}, masked pixels: +26.0 +- 13.2 points"),
        ("next pixel probes better than masked pixels (figure 4)", "too small to tell", f"{data}: +20.0 +- 13.6 points"),
        ("fine-tuning closes part of that gap (figure 4)", "too small to tell", f"{data}: +16.0 +- 17.9 points"),  # 20 - 4
    ]


def test_few_labels_compare_the_probes_of_each_size(tmp_path):
    def one(objective, way, *values):
        return {"objective": objective, "way": way, "accuracies": dict(zip(("4", "25"), values, strict=True))}

    curves = [one("autoregressive", "linear probe", [0.2, 0.3, 0.4], [0.6]), one("bert", "linear probe", [0.28, 0.3], [0.4])]
    curves += [one("autoregressive", "fine-tuned", [0.9], [0.1]), one("bert", "fine-tuned", [0.1], [0.9])]
    found = rows(tmp_path, "low_data", {"curves": curves, "jobs": [{"found": {"counts": {"train": 9, "test": 2400}}}]})
    assert found == [
        (findings.BETTER, "too small to tell", "CIFAR-10 (JPEG q75), 4 labels of each class: +1.0 +- 1.3 points"),
        (findings.BETTER, "confirmed", "CIFAR-10 (JPEG q75), 25 labels of each class: +20.0 +- 1.4 points"),
    ]


def test_studies_that_were_not_run_have_no_row(tmp_path):
    assert findings.block(tmp_path).count("|---") == 3 and "points," not in findings.block(tmp_path)
