"""The summary of a run: count baselines done by hand, losses of two checkpoints, and the files that it writes."""

import json
import sys

import numpy as np
import pytest

from experiments.report import summary
from experiments.report.measurements import from_json
from experiments.report.summary import count_baselines
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette


def test_counts_give_the_entropy_of_what_they_count():
    train = np.tile(np.asarray([[0, 1]]), (10_000, 1))  # position 0 is always colour 0, position 1 always colour 1
    found = count_baselines(train, train[:10], 2)
    assert found["unigram"] == pytest.approx(np.log(2), abs=1e-3)
    assert found["per_position"] == pytest.approx(0, abs=1e-3)


def test_a_colour_never_seen_costs_much_and_not_everything():
    found = count_baselines(np.zeros((100, 4), int), np.ones((1, 4), int), 2)
    assert 2 < found["per_position"] < np.inf and 2 < found["unigram"] < np.inf


def write_run(folder, palette, source="digits", step=0, optim=None, **changes):
    """A run's checkpoint of a random model of 8 x 8 pixels."""
    model = random_model(tiny(layers=1, width=8, heads=2, vocabulary=palette.size, **changes))
    seen = {"source": source, "image_size": 8, "augment": "none", "view": "center_square", "split_by": "name", "validation": 0.0}
    seen |= {"directory": "", "workers": 0, "seed": 0}
    loss = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}
    recipe = {"data": seen, "seed": 0, "loss": loss, "batch_size": 16} | ({"optim": optim} if optim else {})
    checkpoints.save_model(folder, model, palette, recipe, step=step)
    return checkpoints.load(folder)


def test_counts_of_red_green_and_blue_are_per_pixel_as_the_models_loss_is(tmp_path):
    palette = Palette.levels(256) if hasattr(Palette, "levels") else None
    write_run(tmp_path, palette, positions=192, tokens_per_pixel=3)
    found = summary.summarise(tmp_path)["baselines"]
    write_run(tmp_path / "grey", grey_palette(16))
    coloured = summary.summarise(tmp_path / "grey")["baselines"]  # digits have 17 greys: one more than these colours
    assert found["unigram"] == pytest.approx(3 * coloured["unigram"], rel=0.1)


def test_counts_are_of_images_drawn_from_the_whole_split(tmp_path, monkeypatch):
    """And not of the first of a sorted one, which are of one class."""
    pixels = np.zeros((40, 8, 8, 3), np.uint8)
    pixels[20:] = 255
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=pixels, labels=np.arange(40) // 20)
    write_run(tmp_path, grey_palette(), f"npz:{tmp_path}")
    monkeypatch.setattr(summary, "COUNTED", 20)
    assert summary.summarise(tmp_path)["baselines"]["unigram"] > 0.3  # two colours, about as often


def test_a_probe_of_another_model_is_left_out_and_one_without_test_images_has_no_accuracy(tmp_path, capsys):
    pretrained = write_run(tmp_path, grey_palette())
    row = {"layer": 0, "test": None}
    probe = {"step": pretrained.step, "checksum": pretrained.checksum, "best": row, "last": row, "raw_pixels": row}
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    assert "| probe accuracy, last layer" in (shown := summary.table(summary.summarise(tmp_path))) and shown.count("| - |") == 3
    assert "left out" not in capsys.readouterr().err
    for other in ({"checksum": pretrained.checksum + 1}, {"checksum": None, "step": pretrained.step + 1}):
        (tmp_path / "probe.json").write_text(json.dumps(probe | other))
        assert summary.summarise(tmp_path)["probe"] is None
        assert "probe.json is left out, it is of another model" in capsys.readouterr().err


def test_an_earlier_checkpoint_is_measured_image_by_image_beside_the_end(tmp_path):
    write_run(tmp_path / "early", grey_palette(), step=5, qk_norm=True)
    write_run(tmp_path / "run", grey_palette(), step=9)
    found = summary.summarise(tmp_path / "run", before=tmp_path / "early")
    assert (found["test"]["step"], found["before"]["step"], found["training"]) == (9, 5, None) and "measurements" not in summary.summarise(tmp_path / "run")
    end, early = map(from_json, found["measurements"])
    assert (end.factors, end.unit) == ({"objective": "autoregressive", "size": "1x8", "step": 9, "resolution": 8}, "nats") and early.factors["step"] == 5
    assert end.fingerprint == early.fingerprint and len(end.fingerprint) == 33 and len(end.scores) == 359
    for one, result in ((end, found["test"]), (early, found["before"])):
        assert one.scores.mean() == pytest.approx(result["nats_per_pixel"], rel=1e-5)
        low, high = result["interval"]
        assert (low + high) / 2 == pytest.approx(result["nats_per_pixel"], rel=1e-5)
        assert high - low == pytest.approx(2 * 1.9667 * one.scores.std(ddof=1) / 359**0.5, rel=1e-3)  # Student's t of 358 degrees of freedom
    assert found["model"] == {"objective": "autoregressive", "layers": 1, "width": 8, "parameters": found["model"]["parameters"]}
    assert summary.what(found) == "1 layers of width 8, 8 x 8 pixels in 8 colours"


def test_the_learning_rate_is_told_where_it_falls_in_the_last_steps():
    optim = {"schedule": "wsd", "steps": 5700, "decay_steps": 600}
    assert [summary.learning_rate_of(optim, step) for step in (1, 5100, 5101, 5700)] == [{"learning rate": one} for one in ["constant"] * 2 + ["decayed"] * 2]
    assert summary.learning_rate_of(None, 5) == summary.learning_rate_of(optim | {"decay_steps": 0}, 5700) == {}
    assert summary.learning_rate_of(optim | {"schedule": "cosine"}, 5700) == {}


def test_the_two_steps_of_a_run_name_the_learning_rate(tmp_path):
    optim = {"schedule": "wsd", "steps": 9, "decay_steps": 2}
    for name, step in (("early", 5), ("run", 9)):
        write_run(tmp_path / name, grey_palette(), step=step, optim=optim)
    found = summary.summarise(tmp_path / "run", before=tmp_path / "early")
    assert [one["factors"]["learning rate"] for one in found["measurements"]] == ["decayed", "constant"]


def test_the_program_writes_numbers_and_figure_beside_each_other(tmp_path, monkeypatch):
    write_run(tmp_path / "early", grey_palette(), step=5)
    write_run(tmp_path / "run", grey_palette(), step=9)
    lines = [{"step": step, "time": 60 * step, "train/nats_per_pixel": 3 - step / 10, "train/images_per_second": 4.0} for step in range(1, 10)]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [f"--workdir={tmp_path}/run", f"--before={tmp_path}/early", f"--results={tmp_path}/results/mine.json"]
    monkeypatch.setattr(sys, "argv", ["summary", *flags])
    summary.main()
    found = json.loads((tmp_path / "results/mine.json").read_text())
    assert found["training"]["images_seen"] == 144 and found["training"]["training_images"] == 1438 and found["commit"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "results/mine.png", tmp_path / "run/training.png"))
    assert "| test loss of the model" in (tmp_path / "run/summary.md").read_text()
