"""The page of a work directory: of finished, running, stopped, damaged and untrained ones; self-contained; a folder that is none is refused."""

import base64
import io
import json
import re
import sys

import pytest
from PIL import Image

from igpt_jax import report
from igpt_jax.palette.palette import Palette
from igpt_jax.reporting import page, workdir
from igpt_jax.reporting.course import read_intact
from igpt_jax.training import checkpoints
from tests.browser import open_browser
from tests.models import random_model, tiny
from tests.runs import grey_palette, recipe


def line(step, **values):
    return json.dumps({"step": step, "time": 1000.0 + step} | {name.replace("__", "/"): value for name, value in values.items()}) + "\n"


def training(steps=(10, 20, 30, 40)):
    return "".join(
        line(step, train__nats_per_pixel=3 - step / 40, train__learning_rate=1e-3, train__gradient_norm=1.0, train__images_per_second=50.0 + step)
        + line(step, validation__nats_per_pixel=3.1 - step / 40)
        for step in steps
    )


@pytest.fixture
def finished(tmp_path):
    """A work directory with everything that the programs write, but the checkpoints."""
    config = recipe(steps=40).to_dict() | {"history": [{"step": 20, "changes": {"optim.learning_rate": [0.003, 0.001]}}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text(training())
    (tmp_path / "result.json").write_text(json.dumps({"step": 40, "split": "validation", "parameters": 1234, "nats_per_pixel": 2.1}))
    (tmp_path / "palette.json").write_text(json.dumps({"size": 8, "psnr": 41.2}))
    start = {"time": 1e9, "step": 0, "commit": "abc123", "hardware": "2 CPU cores", "processes": 1, "training_images": 400}
    (tmp_path / "starts.json").write_text(json.dumps([start | {"versions": {"jax": "0.10"}, "command": "python -m igpt_jax.train"}]))
    row = {"layer": 0, "validation": 0.5, "test": 0.4, "interval": [0.3, 0.5], "knn": {"test": 0.35}}
    best = {"layers": [row, row | {"layer": 1, "test": 0.6}], "best": row | {"layer": 1, "test": 0.6}, "raw_pixels": row, "model": {"layers": 1}, "step": 40}
    (tmp_path / "probe.json").write_text(json.dumps(best))
    for name in workdir.PICTURES:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def text_of(path):
    """The words of the page, without its style."""
    html = page.page(workdir.read(path))
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.S))


def test_a_finished_run_is_shown_whole(finished):
    html, text = page.page(workdir.read(finished)), text_of(finished)
    for wanted in ("40 of 40", "2.1000 nats per pixel", "2.1000 at step 40", "1,234", "2 CPU cores", "abc123", "jax 0.10", "8 colours, PSNR 41.2 dB", "60.0 %",
                   "75 images/s", "640, 1.6 epochs", "optim.learning_rate 0.003 -&gt; 0.001"):  # fmt: skip
        assert wanted in text, wanted
    assert html.count("<svg") == 4 and html.count("data:image/png;base64,") == len(workdir.PICTURES) and "What is not here" not in text
    picture = re.search(r'base64,([^"]+)"', html)[1]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (8, 8)


@pytest.mark.parametrize(("fitted_again", "tile"), [(False, True), (True, False), (None, True)])
def test_a_palette_that_was_fitted_after_the_training_is_not_shown_as_the_runs(finished, fitted_again, tile):
    """None: the file is damaged, which says nothing."""
    checkpoints.save_model(finished, random_model(tiny()), grey_palette(16), {}, step=40)
    Palette(grey_palette(16).centers * (0.9 if fitted_again else 1)).save(finished / "palette.npy")
    if fitted_again is None:
        (finished / "palette.npy").write_bytes(b"no array")
    text = text_of(finished)
    assert ("8 colours, PSNR 41.2 dB" in text and "The colours of the palette" in text) == tile
    assert ("palette.png and palette.json are of another palette than the one that the run was trained with" in text) == (not tile)
    assert "no palette.png" not in text


def test_other_pictures_of_the_folder_are_shown_by_name_within_bounds(finished, monkeypatch):
    """Of any kind of picture; large, damaged and too many ones are named and left out, also a folder with such a name."""
    monkeypatch.setattr(workdir, "MOST_OTHERS", 5)
    for name in ("training.png", "a.gif", "b.JPG", "c<d.png", "later.png", "last.png"):
        Image.new("RGB", (8, 8), "blue").save(finished / name)
    (finished / "broken.png").write_bytes(b"no picture")
    (finished / "folder.png").mkdir()
    (finished / "large.png").write_bytes((finished / "a.gif").read_bytes() + bytes(workdir.MOST_BYTES))
    (finished / ".hidden.png").write_bytes(b"")
    html = page.page(workdir.read(finished))
    for shown in ("Loss against images seen, beside baselines (training.png)", '<img alt="a.gif" src="data:image/gif;', 'alt="b.JPG" src="data:image/jpeg;',
                  '<img alt="c&lt;d.png" src="data:image/png;', "larger than 2 MiB: large.png", "there are more than 5: later.png",
                  "damaged or cannot be read: broken.png, folder.png"):  # fmt: skip
        assert shown in html, shown
    assert "hidden" not in html and html.count("<img ") == len(workdir.PICTURES) + 5 and html.index("training.png") < html.index("a.gif")


def test_the_page_asks_for_nothing_beside_it(finished):
    html = page.page(workdir.read(finished))
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", html) + re.findall(r"url\(([^)]+)\)", html)
    assert links and all(link.strip("'\"").startswith(("data:", "#")) for link in links)
    assert "<script" not in html and "@import" not in html
    identifiers = re.findall(r' id="([^"]+)"', html)
    used = set(re.findall(r"#(\w+)\)", html)) | set(re.findall(r'href="#(\w+)"', html))
    assert all(len({block for block in re.findall(r"<svg.*?</svg>", html, re.S) if f'id="{name}"' in block}) == 1 for name in used & set(identifiers))


def test_a_run_that_was_stopped_says_how_far_it_is(finished):
    (finished / "result.json").unlink()
    (finished / "metrics.jsonl").write_text(training((10, 20)) + '{"step": 30, "time": 10')
    text = text_of(finished)
    assert "20 of 40" in text and "The run has not ended, 20 of 40 steps are reported" in text and "1 of the lines of metrics.jsonl is damaged" in text
    assert "2.6000 at step 20" in text  # the best so far
    assert "linear probes are of step 40" in text


def test_damaged_files_are_left_out_and_named(finished):
    for name in ("config", "result", "palette", "probe", "starts"):
        (finished / f"{name}.json").write_bytes(b'{"step"\xff')
    (finished / "metrics.jsonl").write_bytes(b"\x00\x00\n[1]\n" + training().encode() + b'{"step": "x"}\n\xff\xfe\n')
    text = text_of(finished)
    for wanted in ("config.json is damaged", "probe.json is damaged", "3 of the lines of metrics.jsonl are damaged", "starts.json is not there"):
        assert wanted in text, wanted


def test_steps_that_were_done_again_count_once_and_losses_that_are_no_numbers_are_left_out(tmp_path):
    losses = ((10, 3.0), (20, 9.0), (10, 2.0), (30, None))
    (tmp_path / "metrics.jsonl").write_text("".join(line(step, train__nats_per_pixel=loss) for step, loss in losses))
    lines, damaged = read_intact(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in lines] == [10, 30] and lines[0]["train/nats_per_pixel"] == 2.0 and not damaged
    assert "10" in text_of(tmp_path)


def test_quantize_alone_and_a_fine_tuning_are_told(tmp_path, finished):
    other = tmp_path / "palette"
    other.mkdir()
    (other / "palette.json").write_text(json.dumps({"size": 8, "psnr": None}))
    assert "A palette of 8 colours, not trained" in text_of(other) and "It is not trained yet" in text_of(other)
    config = recipe(steps=40, model__classes=10, loss__classification=1.0, best__metric="accuracy").to_dict()
    (finished / "config.json").write_text(json.dumps(config))
    (finished / "metrics.jsonl").write_text("".join(line(step, validation__accuracy=value) for step, value in ((10, 0.5), (20, 0.9), (30, 0.7))))
    text = text_of(finished)
    assert "Fine-tuning (autoregressive)" in text and "0.9000 at step 20" in text  # higher is better


@pytest.mark.parametrize(("metric", "best"), [("accuracy_ema", "0.9000 at step 20"), ("nats_per_pixel_ema", "0.5000 at step 10"), ("roundness", "")])
def test_the_best_so_far_is_in_the_direction_of_its_metric(finished, metric, best):
    (finished / "result.json").unlink(missing_ok=True)
    (finished / "config.json").write_text(json.dumps(recipe(steps=40, model__classes=10, loss__classification=1.0, best__metric=metric).to_dict()))
    lines = (line(step, **{f"validation__{metric}": value}) for step, value in ((10, 0.5), (20, 0.9), (30, 0.7)))
    (finished / "metrics.jsonl").write_text("".join(lines))
    text = text_of(finished)
    assert best in text if best else " at step 10" not in text and " at step 20" not in text


def test_words_of_the_recipe_cannot_become_html(finished):
    config = recipe(steps=40).to_dict()
    config["data"]["source"] = "folder:<script>alert(1)</script>"
    (finished / "config.json").write_text(json.dumps(config))
    assert "<script>" not in page.page(workdir.read(finished))


@pytest.mark.parametrize(("make", "message"), [(False, "does not exist"), (True, "is no work directory: give the --workdir of quantize, train or finetune")])
def test_another_folder_is_refused_in_one_line(tmp_path, monkeypatch, make, message):
    folder = tmp_path / "folder"
    if make:
        folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    with pytest.raises(ValueError, match=message):
        report.main()
    assert not list(tmp_path.rglob("*.html"))


def test_the_program_writes_the_file_it_names(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(finished), f"--out={finished}/more/page.html"])
    report.main()
    assert (finished / "more/page.html").read_text().startswith("<!doctype html>") and f"wrote {finished}/more/page.html" in capsys.readouterr().out


@pytest.mark.slow
def test_a_browser_shows_it_on_wide_and_narrow_screens_in_both_colours(finished):
    (finished / "report.html").write_text(page.page(workdir.read(finished)))
    with open_browser() as (context, errors):
        opened = context.new_page()
        for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 360)):
            opened.emulate_media(color_scheme=scheme)
            opened.set_viewport_size({"width": width, "height": 800})
            opened.goto(f"file://{finished}/report.html")
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            ink, paper = (opened.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
            label = opened.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper, label)]
            assert (bright[0] < bright[1]) == (scheme == "light") and bright[2] == bright[0]
        assert not errors


def test_probes_of_another_model_are_not_shown_as_those_of_the_run(finished):
    """Two runs of one recipe have equal steps: the checksum tells them apart."""
    checkpoints.save_model(finished, random_model(tiny()), grey_palette(16), {}, step=40)
    ours, found = checkpoints.load(finished).checksum, json.loads((finished / "probe.json").read_text())
    for checksum, shown in ((ours, True), (ours ^ 1, False)):
        (finished / "probe.json").write_text(json.dumps(found | {"checksum": checksum, "checkpoint": "/elsewhere/checkpoints/40"}))
        text = text_of(finished)
        assert ("60.0 %" in text) == shown and ("probe.json is of another model, step 40 of /elsewhere/checkpoints/40" in text) != shown


@pytest.mark.parametrize(("place", "told"), [("checkpoints/40", False), ("/elsewhere/checkpoints/40", True), ("tuned/checkpoints/40", True)])
def test_probes_of_a_step_that_is_not_kept_are_shown_and_it_is_said_where_nothing_can_be_compared(finished, place, told):
    """As after keep_last deleted the step, or of a run that was copied without its checkpoints; best/ is of another step."""
    checkpoints.save_model(finished / "best", random_model(tiny()), grey_palette(16), {}, step=20)
    found = json.loads((finished / "probe.json").read_text())
    (finished / "probe.json").write_text(json.dumps(found | {"checksum": 5, "checkpoint": str(finished / place)}))
    text = text_of(finished)
    assert "60.0 %" in text and ("which is not here to be compared with this run" in text) == told


def test_probes_of_other_images_than_the_training_say_so(finished):
    data = recipe().to_dict()["data"]
    found = json.loads((finished / "probe.json").read_text())
    for changes, told in (({}, None), ({"image_size": 4, "source": "npz:x"}, "data.source npz:x, there digits, data.image_size 4, there 8")):
        (finished / "probe.json").write_text(json.dumps(found | {"data": data | changes}))
        assert ("The linear probes are of other images than the training" in text_of(finished)) == (told is not None)
    assert told in text_of(finished)


def test_a_step_of_before_checksums_is_not_taken_for_another_model(finished, monkeypatch):
    """`features` computes the checksum that such a checkpoint lacks."""
    checkpoints.save_model(finished, random_model(tiny()), grey_palette(16), {}, step=40)
    step = finished / "checkpoints/40"
    monkeypatch.setattr(checkpoints, "identify", lambda place, ema=False: (str(place), 40, None))
    found = json.loads((finished / "probe.json").read_text())
    (finished / "probe.json").write_text(json.dumps(found | {"checksum": 5, "checkpoint": str(step)}))
    assert "60.0 %" in text_of(finished) and "another model" not in text_of(finished)
