"""The animation of completions: frames in the order of the draws, a GIF with the colours of the pictures, and refusals of the flag before the work."""

import io
import pathlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from igpt_jax import demo, sample
from igpt_jax.sampling import complete, grid
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette


def as_arrays(frames):
    return np.stack([np.asarray(frame) for frame in frames])


def read(file):
    """(frames uint8 [F, H, W, 3], milliseconds of each) of a GIF."""
    with Image.open(file) as opened:
        frames, durations = [], []
        for number in range(opened.n_frames):
            opened.seek(number)
            frames.append(np.asarray(opened.convert("RGB")))
            durations.append(opened.info["duration"])
    return np.stack(frames), durations


def plain(pictures):
    """All pictures in one column, a pixel each."""
    return Image.fromarray(pictures.reshape(-1, *pictures.shape[-2:]))


def test_every_frame_shows_one_more_missing_pixel_of_each_picture():
    pictures = np.random.default_rng(0).integers(129, 256, (2, 3, 4, 4, 3), dtype=np.uint8)
    missing = np.zeros((2, 4, 4), bool)
    missing[0, 1, 2:], missing[0, 3, 0], missing[1, 2] = True, True, True  # 3 pixels that do not touch, and 4
    frames = as_arrays(grid.drawing_frames(pictures, missing[:, None], plain)).reshape(-1, *pictures.shape)
    assert len(frames) == 5
    np.testing.assert_array_equal(frames[0], np.where(missing[:, None, ..., None], 128, pictures))
    np.testing.assert_array_equal(frames[-1], pictures)
    hidden = (frames == 128).all(axis=-1)
    assert hidden.sum(axis=(3, 4)).tolist() == [[[3] * 3, [4] * 3], [[3] * 3, [3] * 3], [[2] * 3, [2] * 3], [[1] * 3, [1] * 3], [[0] * 3, [0] * 3]]
    for one in range(4):  # row by row: a pixel that is hidden stays behind the others
        assert not (hidden[one, 1, 0, 2, :one]).any() and hidden[one, 1, 0, 2, one:].all()


def test_many_pixels_take_as_many_steps_as_a_small_file_has_and_pixels_of_one_block_appear_together():
    pictures = np.full((1, 16, 16, 3), 200, np.uint8)
    frames = as_arrays(grid.drawing_frames(pictures, np.array(True), plain))
    assert (frames == 200).all(axis=-1).sum(axis=(1, 2)).tolist() == list(range(0, 257, 4))
    rows, columns = np.indices((16, 16)) // 8
    frames = as_arrays(grid.drawing_frames(pictures, np.array(True), plain, 2 * columns + rows))  # 4 blocks, one column after the other
    drawn = (frames == 200).all(axis=-1)
    assert {int(count) for count in drawn.sum(axis=(1, 2))} == {0, 64, 128, 192, 256}
    blocks = drawn.reshape(-1, 2, 8, 2, 8)
    assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()
    assert drawn[drawn.sum(axis=(1, 2)) == 128][0, 8:, :8].all()


def test_a_picture_without_a_missing_pixel_is_one_frame(tmp_path):
    pictures = np.full((1, 4, 4, 3), 9, np.uint8)
    frames = grid.drawing_frames(pictures, np.zeros((4, 4), bool), plain)
    assert len(frames) == 1 and grid.save_animation(frames, tmp_path / "one.gif") == "1 frames in 2.0 seconds, the last held for 2"


@pytest.mark.parametrize("colours", [256, 2000])
def test_a_gif_has_the_colours_of_the_pictures_or_256_that_are_near(colours):
    generator = np.random.default_rng(0)
    palette = generator.integers(0, 256, (colours, 3), dtype=np.uint8)
    palette[0] = 128  # of hidden pixels
    pictures = palette[generator.integers(0, colours, (3, 40, 40))]
    frames = grid.drawing_frames(pictures, np.array(True), plain)
    file = io.BytesIO()
    said = grid.save_animation(frames, file)
    found, durations = read(file)
    assert said == "65 frames in 6.3 seconds, the last held for 2" and durations == [500, *[60] * 63, 2000]
    error = np.abs(found.astype(int) - as_arrays(frames)).mean()
    assert error == 0 if colours == 256 else 0 < error < 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A causal and a bert model of 8 x 8 pixels."""
    path = tmp_path_factory.mktemp("runs")
    for objective in ("autoregressive", "bert"):
        checkpoints.save_model(path / objective, random_model(tiny(layers=1, objective=objective)), grey_palette(16), {"loss": {}}, step=1)
    return path


def sampled(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["sample", *map(str, flags)])
    sample._main()


@pytest.mark.slow
def test_the_last_frame_shows_the_completions_of_the_picture(run, monkeypatch, tmp_path, capsys):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    flags = [f"--checkpoint={run}/autoregressive", f"--out={tmp_path}/it.png", f"--gif={tmp_path}/new/it.GIF"]
    sampled(monkeypatch, *flags, "--images", tmp_path / "a.png", "--rows=5", "--completions=2", "--seed=3")
    assert "it.GIF, 25 frames in 3.9 seconds, the last held for 2" in capsys.readouterr().out
    pretrained = checkpoints.load(run / "autoregressive")
    made = complete.complete(pretrained, [pixels], 5, 2, seed=3)
    frames, _ = read(tmp_path / "new/it.GIF")
    np.testing.assert_array_equal(frames[-1][4:100:12, 104:200:12], made.pictures[0, 1])
    np.testing.assert_array_equal(frames[0][4:100:12, 4:100:12], made.given[0])
    sampled(monkeypatch, *flags, "--unconditional=3")
    frames, _ = read(tmp_path / "new/it.GIF")
    np.testing.assert_array_equal(frames[-1], np.asarray(Image.open(tmp_path / "it.png")))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--gif=a.png"], "--gif=a.png must end in .gif"),
        (["--gif=a.gif", "--out=./a.gif"], "--gif and --out are both a.gif: give two names"),
        (["--gif=in.gif", "--images", "in.gif"], "in.gif would replace an input, in.gif"),
        (["--gif=folder.gif"], "folder.gif is a folder"),
    ],
)
def test_a_gif_that_cannot_be_written_is_refused_before_the_work(flags, reason, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("folder.gif").mkdir()
    Image.new("RGB", (8, 8)).save("in.gif")
    monkeypatch.setattr(sample.hub, "load", lambda path, **more: pytest.fail("it began the work"))
    monkeypatch.setattr(sample.runtime, "prepare", lambda: None)
    with pytest.raises(SystemExit, match=reason):
        sampled(monkeypatch, "--checkpoint=no", *flags)


def test_a_bert_model_has_no_order_to_show(run, monkeypatch, tmp_path):
    flags = ["--photographs", "--fill=0,0,4,4", f"--out={tmp_path}/it.png", f"--gif={tmp_path}/it.gif"]
    with pytest.raises(SystemExit, match="a bert model fills many at once: leave it out"):
        sampled(monkeypatch, f"--checkpoint={run}/bert", *flags)
    assert not (tmp_path / "it.png").exists()


@pytest.mark.parametrize("causal", [True, False])
def test_the_page_ends_with_the_animation(causal, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pretrained = SimpleNamespace(image_size=8, model_config=SimpleNamespace(causal=causal, block=1))
    monkeypatch.setattr(demo, "draw_pictures", lambda *arguments: iter([(8, np.stack([pixels, pixels]))]))
    *_, (line, shown) = demo._watch(pretrained, pixels, (6,) if causal else (1, 1, 2, 2), 2, 1.0, 0, 1.0, 0)
    assert "2 made in" in line and shown.count("data:image/png") == 2 and shown.count("data:image/gif") == causal
