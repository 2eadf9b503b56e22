"""Files without measurements become the classifiers that they hold: each number is the one under its key."""

import json

import pytest

from experiments.report import claims, former
from experiments.report.sentences import usual


def read(name):
    """{factors as text, unit: (seeds, means, images)} of a committed file, and its contents."""
    contents = json.loads((claims.RESULTS / f"{name}.json").read_text())
    if "measurements" in contents:
        pytest.skip(f"{name}.json holds measurements: delete its function in experiments/report/former.py, and this test")
    found = former.classifiers_of(name, contents)
    table = {(json.dumps(one.factors, sort_keys=True), one.sample.unit): one.sample for one in found}
    assert len(table) == len(found)
    return contents, lambda unit="accuracy", **factors: table[json.dumps(usual(factors), sort_keys=True), unit], len(found)


def made(name, contents):
    return {json.dumps(one.factors, sort_keys=True): one.sample for one in former.classifiers_of(name, contents)}


def key(**factors):
    return json.dumps(usual(factors), sort_keys=True)


def layer(number, validation, test):
    return {"layer": number, "validation": validation, "test": test, "train": 0.99}


COUNTS = {"train": 1200, "test": 100, "validation": 7}
PROBE = {"counts": COUNTS, "layers": [layer(0, 0.9, 0.11), layer(1, 0.4, 0.22), layer(2, 0.5, 0.33), layer(3, 0.8, 0.44)]}


def test_a_run_has_its_layers_the_chosen_ones_and_raw_pixels():
    found = made("digits", {"seed": 5, "probe": PROBE | {"raw_pixels": {"test": 0.5500001}}})
    expected = {0: 0.11, 1: 0.22, 2: 0.33, 3: 0.44, "best": 0.11, "best interior": 0.33}
    assert {name: (sample.seeds, *sample.means, sample.images, sample.scores) for name, sample in found.items()} == {
        key(layer=level): ((5,), accuracy, 100, None) for level, accuracy in expected.items()
    } | {key(features="raw pixels"): ((5,), 0.55, 100, None)}
    assert len(made("digits", {"seed": 5, "probe": PROBE | {"raw_pixels": None}})) == 6
    read = former.classifiers_of("digits", {"seed": 5, "probe": PROBE | {"raw_pixels": {"test": 0.55}}})
    told = {one.factors.get("layer", "raw"): one.budget for one in read}
    unknown = "whether the tested probe has these too was not stored"
    assert told[2] == told["raw"] == f"1,200 labelled images; C chosen on 7 more; {unknown}"
    assert told["best"] == f"1,200 labelled images; C and the best layer chosen on 7 more; {unknown}"
    assert told["best interior"] == f"1,200 labelled images; C and the best interior layer chosen on 7 more; {unknown}"
    [one, *_] = former.classifiers_of("digits", {"seed": 5, "probe": PROBE | {"raw_pixels": None, "refit": {"on": "both", "images": 1207}}})
    assert one.budget == "1,200 labelled images; C chosen on 7 more; the tested probe has all 1,207"
    two = PROBE | {"layers": PROBE["layers"][:2], "raw_pixels": None}
    assert list(made("digits", {"seed": 5, "probe": two})) == [key(layer=0), key(layer=1), key(layer="best")]


def test_snapshots_have_their_bits_and_losses():
    contents, found, count = read("accuracy_by_loss")
    for curve in contents["curves"]:
        for number, step in enumerate((200, 400, 800, 1600)):
            points = [run[number] for run in curve["runs"]]
            sample = found(size=curve["size"], step=step, layer="best")
            assert sample.means.tolist() == pytest.approx([point["accuracy"] for point in points]) and sample.scores.shape == (len(curve["seeds"]), 2_000)
            losses = found("nats", size=curve["size"], step=step)
            assert losses.means.tolist() == [point["loss"] for point in points] and losses.scores is None
        layers = int(curve["size"].split("x")[0])
        last = {job["found"]["seed"]: job["found"]["points"][-1] for job in contents["jobs"] if job["found"]["size"] == curve["size"]}
        for level in range(layers + 1):
            assert found(size=curve["size"], step=1600, layer=level).means.tolist() == [last[seed]["layers"][level]["test"] for seed in curve["seeds"]]
    assert found(features="raw pixels").means.tolist() == [contents["raw_pixels"]["accuracy"]] and found(features="raw pixels").scores.shape == (1, 2_000)
    earlier = {job["found"]["seed"]: job["found"]["points"][0]["layers"] for job in contents["jobs"] if job["found"]["size"] == "4x64"}
    for place in (0, 4):
        assert found(size="4x64", step=200, layer=place).means.tolist() == [earlier[seed][place]["test"] for seed in sorted(earlier)]
    interior = [max(earlier[seed][1:4], key=lambda row: row["validation"])["test"] for seed in sorted(earlier)]
    assert found(size="4x64", step=200, layer="best interior").means.tolist() == interior
    assert count == 3 * 8 + (3 + 1) + (5 + 1) + (7 + 1) + 1 + 3 * 3 * 4
    assert found(size="4x64", step=200, layer=2).means.tolist() == [earlier[seed][2]["test"] for seed in sorted(earlier)]  # the middle one


def test_a_file_with_measurements_has_the_earlier_snapshots_too():
    points = [{"step": step, "images": 10, "layers": [layer(0, 0.1, 0.1), layer(1, 0.2, 0.3), layer(2, 0.3, 0.4), layer(3, 0.4, 0.5)]} for step in (1, 2)]
    contents = {"curves": [{"size": "3x4"}], "jobs": [{"found": {"size": "3x4", "seed": 7, "points": points}}]}
    contents |= {"settings": {"labels_per_class": 300}, "recipe": {"data": {"validation": 0.1}}, "measurements": []}
    found = claims.read("accuracy_by_loss", contents)
    means = {(one.factors["step"], one.factors["layer"]): one.sample.means.tolist() for one in found}
    assert means == {(1, 0): [0.1], (1, 1): [0.3], (1, 3): [0.5], (1, "best interior"): [0.4]}
    assert found[0].budget.startswith("300 labels of each class, 10% of them validation images; C chosen on these; whether the tested probe has these too")


def test_resolutions_have_layers_and_raw_pixels():
    contents, found, count = read("resolution")
    for side in contents["sides"]:
        assert found(resolution=side["side"], layer="best").means.tolist() == side["accuracy"] and found(resolution=side["side"], layer="best").images == 2_000
        assert found(resolution=side["side"], features="raw pixels").means.tolist() == [side["raw_pixels"]]
        runs = [job["found"] for job in contents["jobs"] if job["found"]["side"] == side["side"]]
        assert found(resolution=side["side"], layer=4).means.tolist() == [run["last"]["test"] for run in runs]
    assert count == 3 * (5 + 2 + 1)
