"""README's results from made-up studies in which no two numbers are equal: each row shows the right ones, in every case that a study can end in."""

import json

from experiments.report import results_table, summary
from experiments.studies import accuracy_by_layer

ORIGIN = {"command": "make it", "commit": "abc", "hardware": "a laptop", "seed": 3}
RUN = {
    "test": {"nats_per_pixel": 1.25, "bits_per_pixel": 1.803, "step": 1500, "images": 359},
    "baselines": {"unigram": 2.5, "per_position": 2.25},
    "palette": {"size": 16, "psnr": 43.51, "seed": 3, "data": {"image_size": 8}},
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


def test_a_run_shows_test_numbers_beside_both_baselines_and_names_resolution_and_palette(tmp_path):
    loss, probe = rows(tmp_path, "cifar10_16", RUN)
    what = "CIFAR-10 (JPEG q75) at 8 x 8 in 16 colours, 123,456 parameters, 1,500 steps: test loss, nats per pixel"
    assert loss[:3] == (f"{what} (per-position baseline: 2.250, unigram baseline: 2.500)", "-", "1.250")
    assert probe[:3] == ("linear probe at the best layer (4 of 8), at the last, raw pixels", "-", "73.5 %, 54.5 %, 35.5 %")
    loss, probe = rows(tmp_path, "cifar10_16", RUN | {"probe": RUN["probe"] | {"raw_pixels": None}})
    assert probe[:3] == ("linear probe at the best layer (4 of 8), at the last", "-", "73.5 %, 54.5 %")


def test_a_run_without_a_probe_shows_the_loss_before_the_learning_rate_fell(tmp_path):
    before = {"nats_per_pixel": 1.375, "step": 1400}
    loss, early = rows(tmp_path, "cifar10_16", RUN | {"probe": None, "model": {"parameters": 77}, "before": before})
    assert "16 colours, 77 parameters, 1,500 steps" in loss[0] and loss[2] == "1.250"
    assert early[:3] == ("the same at step 1,400, before the learning rate fell", "-", "1.375")


def test_the_summary_of_a_run_shows_test_numbers():
    def values(found):
        return {what.strip(): value.strip() for what, value in (line.strip("|").split("|") for line in summary.table(found).splitlines()[2:])}

    assert values(RUN) == {
        "test loss of the model": "1.250 nats per pixel (1.803 bits)",
        "test loss of the per-position baseline": "2.250 nats per pixel",
        "test loss of the unigram baseline": "2.500 nats per pixel",
        "palette": "16 colours at 8 x 8 pixels, PSNR 43.5 dB",
        "probe accuracy, best layer (4 of 8, chosen on validation)": "73.5%",
        "probe accuracy, last layer": "54.5%",
        "logistic regression on raw pixels": "35.5%",
    }
    short = values(RUN | {"palette": {"size": 8, "psnr": None, "data": {"image_size": 4}}, "probe": RUN["probe"] | {"raw_pixels": None}})
    assert short["palette"] == "8 colours at 4 x 4 pixels, exact" and len(short) == 6 and len(values(RUN | {"palette": None, "probe": None})) == 3


def test_the_demo_s_block_is_the_summary_of_its_run(tmp_path):
    (tmp_path / "digits.json").write_text(json.dumps(RUN))
    assert results_table.demo(tmp_path) == summary.table(RUN) + "\n"


def curve(objective="autoregressive", inside=True, seeds=(0,), way="linear probe"):
    best = {"layer": 2, "test": 0.615, "interval": [0.605, 0.625], "inside": inside}
    return {
        "data": "some images", "objective": objective, "way": way, "model": {"layers": 3, "width": 64}, "seeds": list(seeds), "layers": [0, 1, 2, 3],
        "mean": [0.2, 0.4, 0.605, 0.585], "interval": [[0.1, 0.3], [0.3, 0.5], [0.6, 0.61], [0.575, 0.595]], "validation": [0.21, 0.41, 0.66, 0.57],
        "best": best, "lost_by_the_last_layer": {"mean": 0.271, "interval": [0.01, 0.5]},
    }  # fmt: skip


def test_layers_show_the_best_the_last_and_the_raw_pixels(tmp_path):
    curves = [curve(), curve("bert", False, (0, 1)), curve(way="kNN")]
    raw = {"data": "some images", "resolution": 16, "way": "kNN", "test": 0.255, "interval": [0.245, 0.265]}
    study = {"curves": curves, "raw_pixels": [raw], "paper": json.loads(json.dumps(accuracy_by_layer.PAPER))}
    first, second, third, pixels = rows(tmp_path, "accuracy_by_layer", study)
    what, paper = "at the best layer, at the last: ", "96.4 % at 21 of 48, 94.0 % (L, figure 2)"
    ours = "61.5 % (60.5 to 62.5) at 2 of 3, 58.5 % (57.5 to 59.5): +27.1 points"
    assert first[:3] == (f"some images, linear probe {what}next pixel, 3 layers of width 64, 1 seed", paper, ours)
    assert second[:3] == (f"some images, linear probe {what}masked pixels, 3 layers of width 64, 2 seeds", "-", ours.replace("of 3", "of 3: an end"))
    assert third[:2] == (f"some images, kNN {what}next pixel, 3 layers of width 64, 1 seed", "-")  # the paper has no kNN
    assert pixels[:3] == ("some images at 16 x 16, kNN of raw pixels", "-", "25.5 % (24.5 to 26.5)")


def test_equal_losses_show_the_gain_or_why_there_is_none(tmp_path):
    pair = {"smaller": "2x32", "larger": "4x64", "gain": 0.275, "interval": [-0.204, 0.754]}
    none = pair | {"gain": None, "interval": None, "why": "no loss is reached by both"}
    raw = {"accuracy": 0.355, "interval": [0.346, 0.367]}
    first, second, pixels = rows(tmp_path, "accuracy_by_loss", {"gains": [pair, none], "raw_pixels": raw})
    what = "gain of 4x64 over 2x32 (layers x width) in probe accuracy at equal loss, points"
    assert first[:3] == (what, "above 0 (figure 3)", "+27.5 (-20.4 to +75.4)")
    assert second[2] == "no loss is reached by both"
    assert pixels[:3] == ("linear probe of raw pixels, the same images and labels, %", "-", "35.5 (34.6 to 36.7)")
    assert len(rows(tmp_path, "accuracy_by_loss", {"gains": [pair], "raw_pixels": None})) == 1


def test_each_kind_of_classifier_is_a_row_over_the_numbers_of_labels(tmp_path):
    def one(labels, accuracies, **factors):
        found = {"accuracies": accuracies, "mean": sum(accuracies) / len(accuracies), "interval": [0.111, 0.777], "seeds": [*range(len(accuracies))]}
        return {"factors": {"labels": labels, "way": "linear probe"} | factors} | found

    tuned = {"way": "fine-tuned", "start": "scratch", "loss": "joint", "masks": 5}
    rows_of = [one(4, [0.2, 0.3], objective="autoregressive"), one(25, [0.4, 0.4], objective="autoregressive"), one(4, [0.5], features="raw pixels")]
    model = {"layers": 12, "width": 128, "image_size": 16, "step": 5700, "nats_per_pixel": 2.01, "baselines": {"per_position": 4.5}}
    paper = {"percent": {"4": 73.2}, "fine-tuned": {"4": 42.1}}
    study = {"models": {"autoregressive": model}, "rows": [*rows_of, one(4, [0.6], objective="bert", **tuned)], "paper": paper}
    study["rows"].append(one(4, [0.2], objective="autoregressive", way="fine-tuned", start="pretrained", loss="joint"))
    for name in ("low_data", "objectives"):
        assert [row[:3] for row in rows(tmp_path / name, name, study)] == [
            ("next pixel, 12x128 at 16 x 16, 5,700 steps: test loss, nats per pixel (per-position baseline 4.500)", "-", "2.010"),
            ("linear probe, next pixel, 4, 25 labels of each class, 2 draws, %", "73.2; - (L, table 4)", "25.0 (11.1 to 77.7); 40.0 (11.1 to 77.7)"),
            ("linear probe, raw pixels, 4 labels of each class, 1 draw, %", "-", "50.0 (11.1 to 77.7)"),
            ("fine-tuned, masked pixels, scratch, joint, 5 masks, 4 labels of each class, 1 draw, %", "-", "60.0 (11.1 to 77.7)"),
            ("fine-tuned, next pixel, pretrained, joint, 4 labels of each class, 1 draw, %", "42.1 (L, text)", "20.0 (11.1 to 77.7)"),
        ]


def test_resolutions_show_accuracy_raw_pixels_and_loss(tmp_path):
    first = {"side": 8, "accuracy": [0.31, 0.33], "interval": [0.301, 0.342], "raw_pixels": 0.511, "raw_pixels_interval": [0.503, 0.522]}
    second = {"side": 16, "accuracy": [0.455], "interval": [0.404, 0.606], "raw_pixels": 0.611, "raw_pixels_interval": [0.603, 0.622]}
    sides = [first | {"seeds": [0, 1], "nats_per_pixel": [2.75, 2.5]}, second | {"seeds": [0], "nats_per_pixel": [2.125]}]
    found = rows(tmp_path, "resolution", {"sides": sides, "paper": {"percent": {"32": 60.3, "48": 65.2}}})
    assert [row[:3] for row in found] == [
        ("probe at the best layer, images of resolution 8, 16, %", "60.3 (32), 65.2 (48)", "32.0 (30.1 to 34.2); 45.5 (40.4 to 60.6)"),
        ("the same, raw pixels, %", "-", "51.1 (50.3 to 52.2); 61.1 (60.3 to 62.2)"),
        ("the same, test loss in nats per pixel, and its deviation over 2 seeds", "-", "2.625 +- 0.177; 2.125"),
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
    what = "in 8, 512, 4096 colours, each palette fitted on a.jpg and b.jpg together: PSNR, dB"
    assert [row[:3] for row in found] == [(f"a.jpg {what}", "-", "3.2, 9.2, 12.2"), (f"b.jpg {what}", "-", "33.5, 39.5, 42.5")]
