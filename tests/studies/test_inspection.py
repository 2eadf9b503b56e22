"""The studies that look inside a model: their numbers on made-up input, their files from a small model, and their refusals."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.studies import attention_maps, colour_coding, completions, logit_lens, nearest, outputs
from igpt_jax.inspection import maps
from igpt_jax.probing.intervals import wilson
from igpt_jax.training import checkpoints
from igpt_jax.training.evaluation import evaluate_checkpoint
from tests.models import random_model, tiny
from tests.runs import grey_palette

DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random model of 8 x 8 pixels that names digits as its data."""
    path = tmp_path_factory.mktemp("run")
    checkpoints.save_model(path, random_model(tiny(layers=2)), grey_palette(16), {"data": DATA, "loss": LOSS}, step=7)
    return path


def call(monkeypatch, study, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    study.main()


def is_drawn(path):
    picture = np.asarray(Image.open(path).convert("L"))
    return picture.shape[1] > 1000 and picture.std() > 5


def test_attention_is_drawn_and_measured(run, monkeypatch, capsys):
    out = run / "made" / "maps.png"
    call(monkeypatch, attention_maps, f"--checkpoint={run}", "--count=5", "--batch=3", "--row=2", "--column=3", "--number=4", f"--out={out}")
    assert is_drawn(out) and is_drawn(run / "made" / "maps_heads.png")
    found = json.loads(out.with_suffix(".json").read_text())
    assert (found["images"], found["pixel"]["layers"], found["pixel"]["picture"]) == (5, [1, 2], "test image 4")
    pretrained = checkpoints.load(run)
    dataset = attention_maps.batches.open_images(pretrained, 5)
    offsets, start = maps.offset_maps(pretrained.model, dataset.codes(np.arange(5), pretrained.palette))
    np.testing.assert_allclose(found["heads"]["left"]["mean"], offsets[:, :, :, 7, 6].mean(axis=1), atol=2e-5)
    np.testing.assert_allclose(found["heads"]["above"]["mean"], offsets[:, :, :, 6, 7].mean(axis=1), atol=2e-5)
    np.testing.assert_allclose(found["heads"]["start"]["mean"], start.mean(axis=1), atol=2e-5)
    low, high = np.moveaxis(np.array(found["heads"]["distance"]["interval"]), -1, 0)
    assert (low < found["heads"]["distance"]["mean"]).all() and (high > found["heads"]["distance"]["mean"]).all()
    assert "Predicting one pixel: of 8 heads, " in capsys.readouterr().out


@pytest.mark.parametrize("study", [attention_maps, logit_lens, nearest, completions, colour_coding])
def test_outputs_are_checked_before_the_work(study, tmp_path, monkeypatch):
    """The ending, the files beside the picture, and that no input is replaced; without --out nothing of experiments/ is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "run", lambda arguments: 1 / 0 if arguments.out.is_absolute() else sys.exit(f"began {arguments.out}"))
    monkeypatch.setattr(outputs.runtime, "prepare", lambda: None)
    needed = [] if study is colour_coding else ["--checkpoint=no"]
    for out in ("l.json", "maps", "l.xbm"):
        with pytest.raises(SystemExit, match=f"^error: --out={tmp_path}/{out} does not end like the name of a picture"):
            call(monkeypatch, study, *needed, f"--out={tmp_path}/{out}")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(SystemExit, match=f"{tmp_path}/taken.json is a folder"):
        call(monkeypatch, study, *needed, f"--out={tmp_path}/taken.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"a picture")
    given = {attention_maps: ["--image=in/a.png"], nearest: ["--pictures=in"]}.get(study, ["--images", "in/a.png"])
    with pytest.raises(SystemExit, match=f"{tmp_path}/in/a.png would replace an input, in"):
        call(monkeypatch, study, *needed, *given, f"--out={tmp_path}/in/a.png")
    with pytest.raises(SystemExit, match=f"^began {study.__name__.split('.')[-1]}.png$"):
        call(monkeypatch, study, *needed)


@pytest.mark.parametrize(
    ("study", "flags", "other", "flag"),
    [
        (attention_maps, ["--image=a.png", "--number=0"], "number", "image"),
        (logit_lens, ["--images", "a.png", "--shown=4"], "shown", "images"),
        (nearest, ["--pictures=in", "--samples=256"], "samples", "pictures"),
        (completions, ["--images", "a.png", "--count=8"], "count", "images"),
    ],
)
def test_a_flag_without_effect_is_refused(study, flags, other, flag, monkeypatch):
    with pytest.raises(SystemExit, match=f"^error: --{other} has no effect with --{flag}: leave out one of them"):
        call(monkeypatch, study, "--checkpoint=no", *flags)


def test_the_strongest_weight_is_named():
    pixels = np.zeros((1, 4, 8, 8), np.float32)
    for head, place in enumerate([(2, 2), (1, 3), (0, 5), (1, 1)]):
        pixels[0, head][place] = 0.6
    found = attention_maps.strongest(tiny(), maps.PixelMap(pixels, np.array([[0.1, 0.1, 0.1, 0.7]])), 2, 3)
    assert [most["is"] for most in found[0]] == ["left", "above", "2 up 2 right", "start"] and found[0][2]["pixel"] == [0, 5]
    assert [most["weight"] for most in found[0]] == pytest.approx([0.6, 0.6, 0.6, 0.7]) and found[0][3]["pixel"] is None
    title = attention_maps.pixel_title({"pixel": {"strongest": found}})
    assert title.endswith("of 4 heads, 1 look most at the pixel to the left, 1 at the one above, 1 at the start vector and 1 elsewhere")
    assert attention_maps.in_words(1, 0) == "1 down" and attention_maps.in_words(0, 0) == "itself"


def test_the_lens_is_drawn_and_ends_at_the_models_loss(run, monkeypatch):
    out = run / "made" / "lens.png"
    call(monkeypatch, logit_lens, f"--checkpoint={run}", "--count=30", "--batch=16", "--shown=2", f"--out={out}")
    found = json.loads(out.with_suffix(".json").read_text())
    assert is_drawn(out) and [row["layer"] for row in found["layers"]] == [0, 1, 2]
    assert found["layers"][-1]["nats_per_pixel"]["mean"] == pytest.approx(evaluate_checkpoint(run, limit=30)["nats_per_pixel"], rel=1e-6)
    assert found["layers"][-1]["agreement"] == {"mean": 1, "interval": [1, 1]} and found["layers"][0]["agreement"]["mean"] < 1


def test_nearest_pictures_are_drawn_and_counted(run, monkeypatch, capsys):
    out = run / "made" / "nearest.png"
    numbers = ("--samples=5", "--completions=4", "--train=40", "--test=30", "--layer=1", "--batch=16")
    call(monkeypatch, nearest, f"--checkpoint={run}", *numbers, f"--out={out}")
    found = json.loads(out.with_suffix(".json").read_text())
    assert is_drawn(out) and found["pictures"] == {"samples": 5, "completions": 4, "train": 40, "test": 30}
    for space in ("features", "pixels"):
        of = found["spaces"][space]
        assert of["halves"] == 30 and 0 <= of["samples"]["share"] <= 1 and of["test"]["nearer"] == 1  # 1 % of 30 images: the nearest one
    assert "Of 5 samples, " in capsys.readouterr().out


def test_copies_of_training_images_are_found(run, monkeypatch, tmp_path):
    """A folder of pictures: three training images among twenty; the test images' own nearest neighbours set the scale."""
    pretrained = checkpoints.load(run)
    train = nearest.batches.open_images(pretrained, 0, "train").images(0, 20)
    (tmp_path / "made").mkdir()
    for number, picture in enumerate(train):
        shown = picture if number < 3 else np.random.default_rng(number).integers(0, 256, picture.shape, dtype=np.uint8)
        Image.fromarray(shown).save(tmp_path / "made" / f"{number:02}.png")
    (tmp_path / "made" / "notes.txt").write_text("no picture")
    out = tmp_path / "nearest.png"
    call(monkeypatch, nearest, f"--checkpoint={run}", f"--pictures={tmp_path}/made", "--train=2000", "--test=200", f"--out={out}")
    found = json.loads(out.with_suffix(".json").read_text())["spaces"]["pixels"]["pictures"]
    assert found["nearer"] == 3 and found["share"] == 0.15


def test_distances_and_rows_are_those_of_their_definition():
    draw = np.random.default_rng(0)
    queries, references = draw.normal(size=(5, 6)), draw.normal(size=(40, 6))
    cosine = 1 - (queries @ references.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(references, axis=1)
    euclidean = np.linalg.norm(queries[:, None] - references, axis=2)
    for space, expected in (("features", cosine), ("pixels", euclidean)):
        distances, rows = nearest.nearest(queries, references, space)
        np.testing.assert_array_equal(rows, np.argsort(expected, axis=1)[:, :3])
        np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], atol=1e-9)


def test_a_completion_is_not_compared_with_the_picture_that_it_was_made_from():
    train, test = np.array([[0.0], [10.0]]), np.array([[1.0], [21.0]])
    made = np.array([[0.9], [0.9], [9.0]])  # nearest to test picture 0, which the first was made from
    assert nearest.train_wins(made, train, test, "pixels", np.array([0, 1, 1]))["share"] == pytest.approx(2 / 3)
    assert nearest.train_wins(made, train, test, "pixels", None)["share"] == pytest.approx(1 / 3)
    assert nearest.place_in(np.array([4, 2, 7]), np.array([7, 4, 3, 9])).tolist() == [2, 0, -1, -1] and nearest.place_in(np.array([1]), None) is None


def test_the_interval_of_nearest_in_training_holds_half_for_pictures_of_one_kind():
    """In 80 draws of made-up pictures, of which few are the nearest of many: at least 95 % of the intervals, and fewer without the count of trials."""
    draw, held, naive = np.random.default_rng(0), [], []
    for _ in range(80):
        found = nearest.train_wins(*(draw.normal(size=(count, 2)) for count in (300, 40, 40)), "pixels", None)
        held.append(found["interval"][0] < 0.5 < found["interval"][1])
        low, high = wilson(found["share"], 300)
        naive.append(low < 0.5 < high)
    assert np.mean(held) >= 0.95 and np.mean(naive) < 0.92


@pytest.mark.parametrize(
    ("study", "flags", "reason"),
    [
        (attention_maps, ["--row=8"], "row 8, column 4 is outside the picture: both must be from 0 to 7"),
        (attention_maps, ["--layers=3"], "--layers must be a list of whole numbers from 1 to 2, not [3]"),
        (attention_maps, ["--number=100000"], "--number=100000 must be below "),
        (attention_maps, ["--image=nothing.png"], "nothing.png"),
        (logit_lens, ["--data=npz:/nowhere"], "/nowhere"),
        (nearest, ["--samples=0", "--completions=0"], "give --samples, --completions or --pictures"),
        (nearest, ["--layer=3"], "--layer=3 must be from 0 to 2"),
        (nearest, ["--pictures=experiments"], "experiments holds no file that ends in .png, .jpg, .jpeg"),
    ],
)
def test_refusals_are_one_line(run, monkeypatch, tmp_path, study, flags, reason):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, study, f"--checkpoint={run}", *flags, f"--out={tmp_path}/it.png")
    assert reason in stopped.value.code and "\n" not in stopped.value.code and not (tmp_path / "it.png").exists()
