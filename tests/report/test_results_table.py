"""README's results from made-up studies in which no two numbers are equal: each row shows the right ones, in every case that a study can end in."""

import itertools
import json

import pytest

from experiments.report import results_table, summary

ORIGIN = {"command": "make it", "commit": "abc", "hardware": "a laptop", "seed": 3}
RUN = {
    "test": {"nats_per_pixel": 1.25, "bits_per_pixel": 1.803, "step": 1500, "images": 359},
    "baselines": {"unigram": 2.5, "per_position": 2.25},
    "palette": {"size": 16, "psnr": 43.51, "seed": 3},
    "probe": {
        "model": {"parameters": 123456},
        "best": {"layer": 4, "train": 0.91, "validation": 0.82, "test": 0.735},
        "last": {"layer": 8, "train": 0.92, "validation": 0.63, "test": 0.545},
        "raw_pixels": {"train": 0.93, "validation": 0.44, "test": 0.355},
    },
}  # fmt: skip


def rows(tmp_path, name, found):
    """(what, paper, ours, command, origin) of each row of a study, the only one that was run."""
    path = tmp_path / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ORIGIN | found))
    head, line, *lines, last, end = results_table.block(tmp_path).split("\n")
    assert (head, line, end) == (*results_table.HEAD, "") and last == results_table.IMAGENET
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]


def test_a_study_that_was_not_run_has_no_row_and_the_first_row_says_where_the_numbers_are_from(tmp_path):
    assert results_table.block(tmp_path).splitlines() == [*results_table.HEAD, results_table.IMAGENET]
    first, second = rows(tmp_path, "digits", RUN)
    assert first[3:] == ("`make it`, [digits.json](experiments/results/digits.json)", "abc, a laptop, seed 3") and second[3:] == ("as above", "as above")


def test_seeds_are_all_that_the_file_names_at_any_depth(tmp_path):
    for found, seeds in (({"jobs": [{"seed": 5}, {"rounds": {"x": [{"seed": 1}]}}]}, "seeds 1, 3, 5"), ({"jobs": [{"seed": 3, "step": 9}]}, "seed 3")):
        assert rows(tmp_path, "digits", RUN | found)[0][4] == f"abc, a laptop, {seeds}"


def test_a_run_shows_test_numbers_beside_the_better_count(tmp_path):
    loss, probe = rows(tmp_path, "cifar10_small", RUN)
    assert loss[:3] == ("CIFAR-10 (JPEG q75), 123,456 parameters, 1,500 steps: test loss, nats per pixel (per-position baseline: 2.250)", "-", "1.250")
    assert probe[:3] == ("linear probe at the best layer (4 of 8), at the last, raw pixels", "-", "73.5 %, 54.5 %, 35.5 %")
    other = RUN | {"baselines": {"unigram": 2.125, "per_position": 2.25}, "probe": RUN["probe"] | {"raw_pixels": None}}
    loss, probe = rows(tmp_path, "cifar10_small", other)
    assert "(unigram baseline: 2.125)" in loss[0] and probe[:3] == ("linear probe at the best layer (4 of 8), at the last", "-", "73.5 %, 54.5 %")


def test_the_summary_of_a_run_shows_test_numbers():
    def values(found):
        return {what.strip(): value.strip() for what, value in (line.strip("|").split("|") for line in summary.table(found).splitlines()[2:])}

    assert values(RUN) == {
        "test loss of the model": "1.250 nats per pixel (1.803 bits)",
        "test loss of the per-position baseline": "2.250 nats per pixel",
        "test loss of the unigram baseline": "2.500 nats per pixel",
        "palette": "16 colours, PSNR 43.5 dB",
        "probe accuracy, best layer (4 of 8, chosen on validation)": "73.5%",
        "probe accuracy, last layer": "54.5%",
        "logistic regression on raw pixels": "35.5%",
    }
    short = values(RUN | {"palette": {"size": 8, "psnr": None}, "probe": RUN["probe"] | {"raw_pixels": None}})
    assert short["palette"] == "8 colours, exact" and len(short) == 6 and len(values(RUN | {"palette": None, "probe": None})) == 3


def test_the_demo_s_block_is_the_summary_of_its_run(tmp_path):
    (tmp_path / "digits.json").write_text(json.dumps(RUN))
    assert results_table.demo(tmp_path) == summary.table(RUN) + "\n"


def curve(objective="autoregressive", inside=True, seeds=(0,)):
    best = {"layer": 2, "test": 0.615, "inside": inside}
    return {
        "data": "some images", "objective": objective, "model": {"layers": 3, "width": 64}, "seeds": list(seeds), "layers": [0, 1, 2, 3],
        "mean": [0.2, 0.4, 0.605, 0.585], "validation": [0.21, 0.41, 0.66, 0.57], "best": best, "lost_by_the_last_layer": {"mean": 0.271, "least": 0.01},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["accuracy_by_layer", "twelve_layers/accuracy_by_layer"])
def test_layers_show_the_best_the_last_and_the_raw_pixels(tmp_path, name):
    first, second, pixels = rows(tmp_path, name, {"curves": [curve(), curve("bert", False, (0, 1))], "raw_pixels": {"some images": 0.255}})
    what = "some images, probe at the best layer, at the last: "
    paper = "96.3 % at 20 of 48, 94.0 % (L, figure 2)"
    assert first[:3] == (what + "next pixel, 3 layers of width 64, 1 seed", paper, "61.5 % at 2 of 3, 58.5 %: +27.1 points")
    assert second[:3] == (what + "masked pixels, 3 layers of width 64, 2 seeds", "-", "61.5 % at 2 of 3: an end, 58.5 %: +27.1 points")
    assert pixels[:3] == ("some images, raw pixels", "-", "25.5 %")


def test_equal_losses_show_the_gain_and_its_interval_or_why_there_is_none(tmp_path):
    pair = {"smaller": "2x32", "larger": "4x64", "gain": 0.275, "interval": [-0.204, 0.754], "verdict": "too small to tell", "why": "the interval holds 0"}
    none = pair | {"gain": None, "interval": None, "why": "no loss is reached by both"}
    first, second = rows(tmp_path, "accuracy_by_loss", {"verdict": {"pairs": [pair, none]}})
    what = "gain of 4x64 over 2x32 (layers x width) in probe accuracy at equal loss, points (95 % interval)"
    assert first[:3] == (what, "above 0 (figure 3)", "+27.5 (-20.4 to +75.4): too small to tell: the interval holds 0")
    assert second[2] == "too small to tell: no loss is reached by both"


def test_few_labels_stand_beside_the_paper_s_where_it_has_them(tmp_path):
    def one(objective, way, *values):
        return {"objective": objective, "way": way, "accuracies": dict(zip(("4", "25"), values, strict=True))}

    curves = [one("autoregressive", "linear probe", [0.2, 0.3], [0.405]), one("autoregressive", "fine-tuned", [0.5], [0.6])]
    curves.append(one("bert", "linear probe", [0.7], [0.8]))
    found = rows(tmp_path, "low_data", {"curves": curves, "paper": {"percent": {"4": 73.2}}})
    assert [row[:3] for row in found] == [
        ("linear probe, next pixel, 4, 25 labels of each class, %", "73.2; - (L, table 4)", "25.0 +- 7.1; 40.5"),
        ("fine-tuned, next pixel, 4, 25 labels of each class, %", "-", "50.0; 60.0"),
        ("linear probe, masked pixels, 4, 25 labels of each class, %", "-", "70.0; 80.0"),
    ]


def test_resolutions_show_accuracy_then_loss(tmp_path):
    sides = [{"side": 8, "accuracy": [0.31, 0.33], "nats_per_pixel": [2.75, 2.5]}, {"side": 16, "accuracy": [0.455], "nats_per_pixel": [2.125]}]
    found = rows(tmp_path, "resolution", {"sides": sides, "paper": {"percent": {"32": 60.3, "48": 65.2}}})
    assert [row[:3] for row in found] == [
        ("probe at the best layer, images of resolution 8, 16, %", "60.3 (32), 65.2 (48)", "32.0 +- 1.4; 45.5"),
        ("the same, test loss in nats per pixel", "-", "2.625 +- 0.177; 2.125"),
    ]


def test_objectives_show_next_pixel_before_masked_pixels(tmp_path):
    kinds = list(itertools.product(("joint", "classification"), ("scratch", "pretrained"), ("bert", "autoregressive")))
    found = rows(tmp_path, "objectives", {
        "recipe": {"data": {"image_size": 14}, "steps": 2000}, "labels_per_class": 200, "test_images": 2000,
        "pretraining": {
            "autoregressive": {"nats_per_pixel": 0.75, "baselines": {"unigram": 2.5, "per_position": 2.25}},
            "bert": {"nats_per_pixel": 0.625, "baselines": {"unigram": 2.4, "per_position": 2.35}},
        },
        "probe": {name: {"best": {"test": test, "validation": 0.1}, "last": {"test": 0.2}} for name, test in (("autoregressive", 0.71), ("bert", 0.72))},
        "summary": [dict(zip(("loss", "start", "objective"), kind, strict=True), mean=0.5 + number / 100, std=0.3) for number, kind in enumerate(kinds)],
        "bert_votes": {"mean_one_mask": 0.81, "mean_vote_of_5": 0.82},
    })  # fmt: skip
    assert [row[:3] for row in found] == [
        ("Fashion-MNIST at 14 x 14, 2,000 steps: test loss, next pixel (counts: 2.250), masked pixels", "-", "0.750, 0.625"),
        ("200 labels of each class: linear probe, next pixel, masked", "-", "71.0 %, 72.0 %"),
        ("fine-tuned, joint loss: pretrained next pixel, masked; from scratch the same", "99.0, 98.6; - (CIFAR-10, L)", "53.0 %, 52.0 %; 51.0 %, 50.0 %"),
        ("fine-tuned, classification loss: pretrained next pixel, masked; from scratch the same", "-", "57.0 %, 56.0 %; 55.0 %, 54.0 %"),
        ("masked, mean of the fine-tuned models: one mask, vote of 5", '"almost +1" on ImageNet', "81.0 %, 82.0 %"),
    ]


def test_palettes_show_the_median_of_each_program(tmp_path):
    median = {name: {"mse": place / 100, "seconds": place + 0.5} for place, name in enumerate(("ours-early", "ours", "scikit-learn", "faiss"))}
    first, second = rows(tmp_path, "bench_palette", {"colours": 512, "pixels": 51_200_000, "median": median, "rounds": {"ours": [{"mse": 0.5}]}})
    what = "palette of 512 colours on 51,200,000 pixels of CIFAR-10 (JPEG q75): error of ours, scikit-learn, FAISS"
    assert first[:3] == (what, "-", "0.010000, 0.020000, 0.030000")
    assert second[:3] == ("the same, seconds from the counted colours to the centres", "-", "1.5, 2.5, 3.5")


def test_colours_show_three_sizes_of_each_picture(tmp_path):
    sweep = [{"colours": 2**power, "psnr": [power + 0.25, power + 30.5]} for power in (3, 5, 9, 12)]
    found = rows(tmp_path, "colour_coding", {"sweep": sweep, "images": [{"name": "a.jpg", "psnr": 1.5}, {"name": "b.jpg", "psnr": 2.5}]})
    what = "in 8, 512, 4096 colours of its own: PSNR, dB"
    assert [row[:3] for row in found] == [(f"a.jpg {what}", "-", "3.2, 9.2, 12.2"), (f"b.jpg {what}", "-", "33.5, 39.5, 42.5")]
