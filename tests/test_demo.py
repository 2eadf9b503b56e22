"""The page to play with: what it shows equals what the programs make, its errors are lines, and a browser finds it working without asking anybody outside."""

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from igpt_jax import demo
from igpt_jax.data import images, pipeline
from igpt_jax.data.photographs import SQUARES
from igpt_jax.extras import install
from igpt_jax.inspection import batches, maps
from igpt_jax.inspection import pictures as drawn
from igpt_jax.palette.palette import Palette
from igpt_jax.sampling import complete
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained
from tests.browser import open_browser
from tests.models import random_model, tiny
from tests.runs import ROOT, call, grey_palette

DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
PROBE = {
    "step": 7, "data": {"source": "digits"}, "counts": {"train": 1294}, "model": {"layers": 1, "width": 32, "parameters": 1000}, "raw_pixels": None,
    "layers": [{"layer": 0, "validation": 0.5, "test": 0.4}, {"layer": 1, "validation": 0.75, "test": 0.7}],
    "best": {"layer": 1, "validation": 0.75, "test": 0.7},
}  # fmt: skip
WATCHED = """
import runpy, sys
def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        if host not in (None, "127.0.0.1", "localhost", "::1"):
            print("outside:", event, host, file=sys.stderr, flush=True)
sys.addaudithook(hear)
runpy.run_module("igpt_jax.demo", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def pretrained():
    return Pretrained(random_model(tiny()), grey_palette(16), {"loss": {}, "data": DATA}, 0, "")


@pytest.fixture(scope="module")
def bert():
    return Pretrained(random_model(tiny(objective="bert")), grey_palette(16), {"loss": {}, "data": DATA}, 0, "")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [False, True])
def test_the_rows_that_appear_are_those_of_the_sampling_program(pretrained, pixels, levels):
    if levels:
        model = random_model(tiny(positions=3 * 64, tokens_per_pixel=3))
        pretrained = Pretrained(model, Palette.levels(16), {}, 0, "")
    settings = {"completions": 2, "temperature": 0.9, "top_k": 5, "top_p": 0.8, "seed": 4}
    expected = complete.complete(pretrained, [pixels], rows=3, **settings).pictures[0]
    drawn = list(demo.draw_pictures(pretrained, pixels, demo.missing_pixels(pretrained, 3), **settings))
    assert [done for done, _ in drawn] == [4, 5, 6, 7, 8]
    for done, pictures in drawn:
        np.testing.assert_array_equal(pictures[:, :done], expected[:, :done])
        assert (pictures[:, done:] == 128).all()


def test_a_bert_model_fills_the_region_which_ends_at_the_border(bert, pixels):
    missing_HH = demo.missing_pixels(bert, 5, 6, 4, 1)
    assert np.argwhere(missing_HH).tolist() == [[5, 6], [6, 6], [7, 6]]
    [(done, pictures)] = demo.draw_pictures(bert, pixels, missing_HH, 2, 1.0, 0, 1.0, 1)
    np.testing.assert_array_equal(pictures, complete.fill(bert, [pixels], missing_HH, 2, seed=1).pictures[0])
    assert done == 8 and pictures.shape == (2, 8, 8, 3)


def test_an_upload_of_any_kind_is_read_and_a_broken_one_named_without_its_place(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (31, 50, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.tiff")
    for view in pipeline.VIEWS:
        np.testing.assert_array_equal(demo.read_upload(tmp_path / "wide.tiff", 8, view), images.evaluation_view(wide, view, 8))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ValueError, match=r"^broken\.png is not a readable image: ") as error:
        demo.read_upload(str(tmp_path / "broken.png"), 8, "squash")
    assert str(tmp_path) not in str(error.value)


def test_the_input_is_shown_resized_coded_and_grey_where_it_is_missing(pretrained, pixels):
    shown = demo.show_input(pretrained, pixels, demo.missing_pixels(pretrained, 2))
    coded = pretrained.palette.decode(pretrained.palette.encode(pixels))
    given = np.where(np.arange(8)[:, None, None] < 2, coded, np.uint8(128))
    for picture, expected in zip(pictures_in(shown), (pixels, coded, given), strict=True):
        np.testing.assert_array_equal(picture, expected)
    for caption in ("resized, 8 × 8 pixels", "in 16 colours", "model input, 16 of 64 pixels"):
        assert caption in shown
    assert "Choose an image" in demo.show_input(pretrained, None, demo.missing_pixels(pretrained, 2))


@pytest.mark.parametrize("kind", ["causal", "bert"])
def test_the_tab_that_looks_inside_shows_the_maps_of_a_layer_and_the_lens(pretrained, bert, pixels, kind):
    model = {"causal": pretrained, "bert": bert}[kind]
    codes = batches.encode_pictures(model, pixels)[0]
    found = maps.pixel_maps(model, codes, 2, 5)
    shown = demo.show_attention(model, pixels, found, 2, 5, 3)
    large, picture, *heads = pictures_in(shown, scale=1)
    scale = 2 * demo.SIDE // 8
    assert large.shape == (288, 288, 3) and len(heads) == 4 and 'data-side="8"' in shown
    np.testing.assert_array_equal(large, drawn.framed(drawn.overlay(decoded(model, codes), found.pixels[2].mean(axis=0), unseen(model)), 2, 5, scale))
    np.testing.assert_array_equal(heads[1], drawn.framed(drawn.overlay(decoded(model, codes), found.pixels[2, 1], unseen(model)), 2, 5, scale))
    np.testing.assert_array_equal(picture[::scale, ::scale][~frame()], decoded(model, codes)[~frame()])
    assert (large[2 * scale, 5 * scale] == drawn.CHOSEN).all() and ("start vector" in shown) == (kind == "causal")
    assert "layer 3 of 3, mean over 4 heads" in shown and f"head 2: up to {100 * found.pixels[2, 1].max():.0f} %" in shown
    layers = pictures_in(demo.show_lens(model, pixels))
    assert len(layers) == 5
    np.testing.assert_array_equal(layers[-1], decoded(model, codes))


def test_weights_shine_and_what_is_not_seen_is_blank():
    picture = np.full((4, 4, 3), 200, np.uint8)
    weights = np.zeros((4, 4))
    weights[0, 1], weights[1, 0] = 0.64, 0.16
    over = drawn.overlay(picture, weights, np.arange(16).reshape(4, 4) >= 6).astype(int)
    assert (over[0, 1] == drawn.SHINE).all() and (over[1, 2:] == drawn.UNSEEN).all() and (over[2:] == drawn.UNSEEN).all()
    luminance = over @ (0.299, 0.587, 0.114)  # in grey too: the larger the weight the brighter
    assert luminance[0, 1] > luminance[1, 0] > luminance[0, 0] == luminance[1, 1]
    np.testing.assert_allclose(over[1, 0], (over[0, 0] + drawn.SHINE) / 2, atol=1)  # the root of a quarter of the largest


def decoded(model, codes):
    return model.palette.decode(codes).reshape(8, 8, 3)


def unseen(model):
    number = np.arange(64).reshape(8, 8)
    return number >= 21 if model.model_config.causal else number == 21


def frame():
    return np.arange(64).reshape(8, 8) == 21


def test_what_goes_wrong_is_a_line_on_the_page(pretrained, pixels):
    [(line, made)] = demo._watch(pretrained, None, (4,), 2, 1.0, 0, 1.0, 0)
    assert "Choose an image first." in line and made == ""
    *_, (line, made) = demo._watch(pretrained, pixels, (4,), 2, 1.0, 17, 1.0, 0)
    assert "top_k 17 must be a whole number in 0..16" in line and 'role="alert"' in line
    assert "&lt;b&gt;" in demo._line(ValueError("<b>"), problem=True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"size": 16, "psnr": 43.512, "pixels": 92032, "data": {"source": "digits"}}, "16 colours, from dark to light, .*; PSNR 43.5 dB on the 92,032"),
        ({"size": 16, "psnr": None, "pixels": 92032, "data": {"source": "digits"}}, "exact on the 92,032 pixels"),
        ({"size": 512}, "PSNR unknown: .*palette.json is of another palette, of 512 colours"),
        ({}, "KeyError"),
        (None, "PSNR unknown: no palette.json in "),
        ("{", "palette.json is not JSON"),
    ],
)  # fmt: skip
def test_the_palette_says_how_near_it_comes(pretrained, tmp_path, facts, expected):
    if facts is not None:
        (tmp_path / "palette.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    assert re.search(expected, demo._or_problem(demo.show_palette, pretrained, tmp_path))


def test_the_nearness_of_another_palette_is_not_told(pretrained, tmp_path):
    """Of equal size: the colours are compared."""
    (tmp_path / "palette.json").write_text(json.dumps({"size": 16, "psnr": 43.5, "pixels": 92032, "data": {"source": "digits"}}))
    pretrained.palette.save(tmp_path / "palette.npy")
    assert "PSNR 43.5 dB" in demo.show_palette(pretrained, tmp_path)
    Palette(pretrained.palette.centers * 0.9).save(tmp_path / "palette.npy")
    assert "PSNR unknown" in demo.show_palette(pretrained, tmp_path)


def test_a_model_of_a_file_has_its_probes_in_a_run_of_its_name(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(pretrained, path="small", name="small")
    assert demo._workdir(small) == demo.epath.Path("runs/small")
    told = demo.show_layers(small, demo._workdir(small))
    assert "python -m igpt_jax.features --checkpoint=small --out=runs/small/features" in told and "--out=runs/small<" in told
    assert "PSNR unknown: the model&#x27;s file does not say it" in demo.show_palette(small, demo._workdir(small))
    (tmp_path / "runs/small").mkdir(parents=True)
    (tmp_path / "runs/small/probe.json").write_text(json.dumps(PROBE | {"checksum": 5}))
    assert "linear probes of step 7" in demo.show_layers(small, demo._workdir(small))
    told = demo.show_layers(dataclasses.replace(small, step=7, checksum=6), demo._workdir(small))
    assert "--checkpoint=small --out=runs/small/features --overwrite" in told


def test_the_layers_are_drawn_or_the_way_to_them_is_told(pretrained, tmp_path):
    assert "igpt_jax.features --checkpoint=" in demo.show_layers(pretrained, tmp_path)
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "features.json").write_text("{}")
    told = demo.show_layers(pretrained, tmp_path)
    assert "igpt_jax.features" not in told and f"python -m igpt_jax.probe --features={tmp_path / 'features'} --out={tmp_path}" in told
    (tmp_path / "features" / "probe.json").write_text(json.dumps(PROBE))
    shown = demo.show_layers(pretrained, tmp_path)
    assert "linear probes of step 7, 1,294 training images; best layer 1 of 1" in shown
    assert pictures_in(shown, scale=1)[0].shape == (810, 1050, 3)
    (tmp_path / "features" / "probe.json").write_text(json.dumps(PROBE | {"checksum": 5}))
    for checksum, step, is_another in ((6, 7, True), (5, 7, False), (6, 8, False), (None, 7, False)):
        told = demo.show_layers(dataclasses.replace(pretrained, checksum=checksum, step=step), tmp_path)
        assert ("The probe is of another model of step 7 (checksum 5, this one&#x27;s 6)" in told) == is_another


def test_examples_are_test_images_and_photographs_where_they_can_be_read(pretrained, capsys):
    found = demo.find_examples(pretrained)
    assert [name for _, name in found] == ["test 0", "test 71", "test 143", "test 214", "test 286", "test 358", *SQUARES]
    assert all(picture.shape == (8, 8, 3) and picture.dtype == np.uint8 for picture, _ in found)
    nameless = Pretrained(pretrained.model, pretrained.palette, {}, 0, "")
    assert [name for _, name in demo.find_examples(nameless)] == list(SQUARES)
    said = capsys.readouterr().err
    assert said == "note: the page works, without test images as examples (this checkpoint names no data); --data=SOURCE takes those of other data\n"
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        demo.find_examples(pretrained, "folder:/nowhere")


@pytest.mark.slow
def test_without_gradio_or_checkpoint_one_line_says_so(tmp_path):
    program = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_module('igpt_jax.demo', run_name='__main__', alter_sys=True)"
    bare = subprocess.run([sys.executable, "-c", program, "--checkpoint=nothing"], cwd=ROOT, capture_output=True, text=True)
    assert (bare.returncode, bare.stderr) == (1, f"error: the page needs Gradio: {install('demo')}\n")
    pytest.importorskip("gradio")
    code, _, error = call("demo", f"--checkpoint={tmp_path / 'nothing'}")
    assert code == 1 and error.startswith("error: checkpoint") and "does not exist" in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_in_a_browser(pretrained, pixels, tmp_path):
    """Upload, completions row by row, the other tabs, a broken and a too large file; nobody outside is asked, by the page or by the program."""
    pytest.importorskip("gradio")
    with served(pretrained, tmp_path / "run") as (address, process), open_browser() as (context, errors):
        asked, page = [], context.new_page()
        context.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_alt_text("model input, 32 of 64 pixels").wait_for()  # of the first example

        large = pixels.repeat(5, 0).repeat(5, 1)
        upload(page, tmp_path / "good.png", png(large))
        shown = page.locator(".pictures").first
        page.wait_for_function("before => document.querySelector('.pictures').innerHTML != before", arg=shown.inner_html())
        np.testing.assert_array_equal(pictures_in(shown.inner_html())[0], images.center_square(large, 8))

        said = watch_lines(page)
        page.get_by_role("button", name="Complete").click()
        page.get_by_text("4 made in").wait_for()
        assert {"row 5 of 8", "row 6 of 8", "row 7 of 8"} & set(said())
        made = pictures_in(page.locator(".pictures").nth(1).inner_html())
        np.testing.assert_array_equal(made, complete.complete(pretrained, [large], completions=4).pictures[0])

        page.get_by_role("button", name="test 71").click()
        page.get_by_text("4 made in").wait_for(state="detached")
        page.get_by_role("tab", name="Look inside").click()
        page.get_by_text("row 4, column 4 is predicted").wait_for()
        box = page.locator(".large img").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 6.5 / 8, box["y"] + box["height"] * 1.5 / 8)
        page.get_by_text("row 1, column 6 is predicted").wait_for()
        page.get_by_label("number input for Layer (of 3)").fill("2")
        page.get_by_text("layer 2 of 3, mean over 4 heads").wait_for()
        page.get_by_text("layer 3: ").wait_for()
        for tab, text in (("Palette", "PSNR 43.5 dB on the 92,032 pixels (digits)"), ("Accuracy by layer", "best layer 1 of 1")):
            page.get_by_role("tab", name=tab).click()
            page.get_by_text(text).wait_for()
        page.get_by_role("tab", name="Complete").click()
        upload(page, tmp_path / "broken.png", b"no picture")
        page.get_by_role("alert").get_by_text("broken.png is not a readable image: no format that Pillow knows").wait_for()
        page.get_by_role("button", name="Complete").click()
        page.get_by_role("alert").get_by_text("Choose an image first.").wait_for()
        ended = re.compile(r"request: \S+/(queue/data|upload_progress)\S* net::ERR_ABORTED")  # which is how Gradio's page ends its own streams of events
        assert [error for error in errors if not ended.fullmatch(error)] == []

        page.get_by_role("button", name="Clear").click()
        upload(page, tmp_path / "large.png", bytes(demo.UPLOAD_MB * 2**20 + 1))
        page.get_by_text("maximum allowed size").wait_for(timeout=5000)
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert "outside:" not in error and "Traceback" not in error, error
        assert list((tmp_path / "run" / "temporary").iterdir()) == []  # no upload stays


@pytest.mark.slow
def test_a_bert_model_in_a_browser(bert, tmp_path):
    pytest.importorskip("gradio")
    with served(bert, tmp_path / "run") as (address, _), open_browser() as (context, _):
        page = context.new_page()
        page.goto(address)
        page.get_by_alt_text("model input, 48 of 64 pixels").wait_for()
        page.get_by_label("number input for Height of the region, pixels").fill("8")
        page.get_by_alt_text("model input, 40 of 64 pixels").wait_for()
        page.get_by_role("button", name="Fill", exact=True).click()
        page.get_by_text("4 made in").wait_for()
        pictures = pictures_in(page.locator(".pictures").nth(1).inner_html())
        assert len({picture.tobytes() for picture in pictures}) == 4
        page.get_by_role("tab", name="Accuracy by layer").click()
        page.get_by_text("No probe yet").wait_for()
        page.get_by_text("python -m igpt_jax.features --checkpoint=").wait_for()


@contextlib.contextmanager
def served(pretrained, workdir):
    """A run's directory with a checkpoint, served: (address, process); a causal one has palette.json and probe.json."""
    checkpoints.save_model(workdir, pretrained.model, pretrained.palette, pretrained.config)
    if pretrained.model_config.causal:
        (workdir / "palette.json").write_text(json.dumps({"size": 16, "psnr": 43.5, "pixels": 92032, "data": {"source": "digits"}}))
        (workdir / "probe.json").write_text(json.dumps(PROBE))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (workdir / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(workdir / "temporary")}
    command = [sys.executable, "-c", WATCHED, f"--checkpoint={workdir}", f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()  # ends, empty, where the program does
        assert line.startswith(f"http://127.0.0.1:{port}/ shows "), line + process.communicate()[1]
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.kill()
        process.communicate()


def upload(page, path, content):
    path.write_bytes(content)
    page.locator("input[type=file]").set_input_files(path)


def watch_lines(page):
    """From now on every text of the page's line is kept; a function that returns them."""
    page.evaluate(
        """() => {
        window.lines = [];
        const keep = () => window.lines.push(...[...document.querySelectorAll(".said")].map(line => line.textContent));
        new MutationObserver(keep).observe(document.body, {childList: true, subtree: true, characterData: true});
    }"""
    )
    return lambda: page.evaluate("window.lines")


def png(picture):
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "png")
    return written.getvalue()


def pictures_in(page_html, scale=None):
    """The pictures of a piece of the page, uint8, each at the size it had before it was enlarged."""
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")) for code in re.findall(r"base64,([\w+/=]+)", page_html)]
    return [picture[:: scale or demo.SIDE // 8, :: scale or demo.SIDE // 8] for picture in found]
