"""A page to play with a model. Start it, then open http://127.0.0.1:7860 (needs the extra `demo`). Without --checkpoint it shows cifar10-16.

    python -m igpt_jax.demo --checkpoint=cifar10-16
    python -m igpt_jax.demo --checkpoint=runs/digits

Four tabs: the lower rows of an image completed row by row (a bert model fills a region instead), where the model looks and what each layer would predict, the
palette, the accuracy of every layer. The page asks nobody but this program: no script, font or statistic from outside. The same image, settings and seed give
the same pictures here and by igpt_jax.sample, given no other image with the same upper rows before it.
H height and width of a picture, I images, P codes of a prompt.
"""

import argparse
import base64
import html
import importlib.util
import io
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from igpt_jax.cli import ANY_ERROR, USER_ERRORS, Parser, explain, fail, integer
from igpt_jax.data import images, pipeline
from igpt_jax.data.photographs import photographs
from igpt_jax.distributed import runtime
from igpt_jax.distributed.multihost import check_alone
from igpt_jax.extras import install
from igpt_jax.files import one_line
from igpt_jax.inspection import batches, lens, maps
from igpt_jax.inspection import pictures as drawn
from igpt_jax.interop import hub
from igpt_jax.model.transformer import parameter_count
from igpt_jax.probing.figure import draw
from igpt_jax.sampling import complete, generate, grid
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained

ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # signals that end the page; Windows lacks the last
UPLOAD_MB = 50  # 2^20 bytes each, of a file; pixels have Pillow's own limit
MOST_COMPLETIONS = 8  # at once
TEST_EXAMPLES = 6  # images of the test split, offered beside squares of scikit-learn's photographs
FIRST_MODEL = "cifar10-16"  # in the package; shown where no checkpoint is given
SIDE = 144  # pixels of the page for one picture, at least
STYLE = f"""
.gradio-container {{ width: 100% !important; max-width: 1160px !important; margin: 0 auto !important; }}
.pictures, .examples {{ display: flex; flex-wrap: wrap; gap: 16px; }}
.pictures figure {{ margin: 0; width: {SIDE}px; }}
.pictures.wide figure {{ width: auto; max-width: 100%; }}
.pictures img, .examples img {{ width: 100%; height: auto; display: block; image-rendering: pixelated; outline: 1px solid var(--border-color-primary); }}
.pictures.wide img {{ width: auto; max-width: min(100%, 760px); image-rendering: auto; background: white; }}
.pictures figcaption, .said, .examples button {{ font: inherit; font-size: 0.9em; line-height: 1.35; color: var(--body-text-color); }}
.pictures figcaption {{ margin-top: 6px; }}
.examples {{ gap: 10px; align-items: flex-start; }}
.examples button {{ width: 76px; padding: 0; border: 0; background: none; cursor: pointer; }}
.examples button:hover img, .examples button:focus-visible img {{ outline: 3px solid var(--color-accent); }}
.looked {{ display: flex; flex-wrap: wrap; gap: 24px; }}
.large img {{ width: {2 * SIDE}px; cursor: crosshair; image-rendering: pixelated; }}
.problem {{ padding: 8px 12px; border-left: 4px solid #b45309; background: var(--background-fill-secondary); }}
.rows {{ width: 100%; height: 8px; accent-color: var(--color-accent); }}
pre {{ overflow-x: auto; font-size: 0.9em; }}
.said, .problem {{ min-height: 1.4em; overflow-wrap: anywhere; }}
"""
EXAMPLE_CLICKED = """element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) trigger("click", {index: Number(button.dataset.index)});
});"""
PIXEL_CLICKED = """element.addEventListener("click", event => {
  const large = event.target.closest(".large"), box = event.target.getBoundingClientRect();
  const place = (at, start, length) => Math.max(0, Math.min(large.dataset.side - 1, Math.floor((at - start) / length * large.dataset.side)));
  if (large && event.target.tagName == "IMG")
    trigger("click", {row: place(event.clientY, box.top, box.height), column: place(event.clientX, box.left, box.width)});
});"""


# ---- what the page shows, without the page ----


def read_upload(path: str | os.PathLike[str], size: int, view: str) -> np.ndarray:
    """An uploaded picture as the model's square of uint8 [size, size, 3] by a `view`; ValueError in one line with the file's name and not its place."""
    path = pathlib.Path(path)
    try:
        return images.given_view(images.read_image(path), view, size)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None


def missing_pixels(pretrained: Pretrained, *numbers: int) -> np.ndarray:
    """bool [H, H] of what the model is to draw: below the `rows` kept, or for a bert model `top, left, height, width` cut off at the border."""
    missing_HH = np.zeros((pretrained.image_size,) * 2, bool)
    if pretrained.model_config.causal:
        missing_HH[numbers[0] :] = True
    else:
        top, left, height, width = numbers
        missing_HH[top : top + height, left : left + width] = True
    return missing_HH


def draw_pictures(
    pretrained: Pretrained, pixels: np.ndarray, missing_HH: np.ndarray, completions: int, temperature: float, top_k: int, top_p: float, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (rows done, uint8 [completions, H, H, 3]) after each row; a bert model's pictures come once, whole."""
    size, config, palette = pretrained.image_size, pretrained.model_config, pretrained.palette
    if not config.causal:
        made = complete.fill(pretrained, [pixels], missing_HH, completions, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        yield size, made.pictures[0]
        return
    kept = int(missing_HH.any(axis=1).argmax())
    prompt_IP = palette.encode(pixels[None]).reshape(1, -1)[:, : kept * config.columns]
    drawn = generate.sample_rows(pretrained.model, prompt_IP, jax.random.key(seed), completions, temperature, top_k, top_p)
    for number, codes in enumerate(drawn, 1):
        done = kept + number * config.block
        pictures = palette.decode(codes[0]).reshape(completions, size, size, 3)
        pictures[:, done:] = complete.GREY
        yield done, pictures


def show_input(pretrained: Pretrained, pixels: np.ndarray | None, missing_HH: np.ndarray) -> str:
    """The picture resized, in the palette's colours, and as the model gets it."""
    if pixels is None:
        return _line("Choose an image, or one of the examples.")
    size, palette = pretrained.image_size, pretrained.palette
    coded = palette.decode(palette.encode(pixels)).reshape(pixels.shape)
    given = np.where(missing_HH[..., None], np.uint8(complete.GREY), coded)
    left = f"model input, {size**2 - missing_HH.sum():,} of {size**2:,} pixels"
    shown = (pixels, f"resized, {size} × {size} pixels"), (coded, f"in {_colours(palette)}"), (given, left)
    return _strip(_figure(_enlarged(picture), caption) for picture, caption in shown)


def show_attention(pretrained: Pretrained, pixels: np.ndarray, found: maps.PixelMap, row: int, column: int, layer: int) -> str:
    """Where a layer (from 1) looks when it predicts a pixel: large the mean over its heads, small the picture and each head."""
    shown = drawn.attention_pictures(pretrained, batches.encode_pictures(pretrained, pixels)[0], found, row, column, layer, 2 * SIDE)
    large, *small = (_figure(_enlarged(picture, 1), caption) for picture, caption in shown)
    return f'<div class="looked"><div class="large" data-side="{pretrained.image_size}">{large}</div>{_strip(small)}</div>'


def show_lens(pretrained: Pretrained, pixels: np.ndarray) -> str:
    """The most likely colour of every pixel if a layer were the last, for every layer, and the picture."""
    shown = lens.lens_pictures(pretrained, batches.encode_pictures(pretrained, pixels)[0])
    return _strip(_figure(_enlarged(picture), caption) for picture, caption in shown)


def show_palette(pretrained: Pretrained, workdir: epath.Path) -> str:
    """The colours, how many, and how near they come to the images they were fitted on (from WORKDIR/palette.json)."""
    palette = pretrained.palette
    facts = _read_json(workdir / "palette.json")
    if facts is None and pretrained.name is not None:
        quality = "PSNR unknown: the model's file does not say it"
    elif facts is None:
        quality = f"PSNR unknown: no palette.json in {workdir}, where igpt_jax.quantize writes it"
    elif facts["size"] != palette.size:
        quality = f"PSNR unknown: {workdir / 'palette.json'} is of another palette, of {facts['size']} colours"
    elif palette.differs_from(stored := workdir / "palette.npy"):
        quality = f"PSNR unknown: {stored} and palette.json are of another palette than the model's"
    else:
        nearness = "exact" if facts["psnr"] is None else f"PSNR {facts['psnr']:.1f} dB"
        quality = f"{nearness} on the {facts['pixels']:,} pixels ({facts['data']['source']}) that it was fitted on"
    caption = f"{_colours(palette)}, from dark to light, each row by hue; {quality}"
    return _strip([_figure(_enlarged(palette.picture(), 1), caption)], "pictures wide")


def show_layers(pretrained: Pretrained, workdir: epath.Path) -> str:
    """The probe's figure from WORKDIR/probe.json, or what to run for one."""
    folder, checkpoint = workdir / "features", pretrained.path if pretrained.name else workdir
    result = _read_json(workdir / "probe.json") or _read_json(folder / "probe.json")
    if result is None:
        commands = [] if (folder / "features.json").exists() else [f"python -m igpt_jax.features --checkpoint={checkpoint} --out={folder}"]
        commands.append(f"python -m igpt_jax.probe --features={folder} --out={workdir}")
        return _line("No probe yet. Make one so, and load this page again:") + f"<pre>{html.escape(chr(10).join(commands))}</pre>"
    if result["step"] == pretrained.step and (probed := result.get("checksum")) not in (None, pretrained.checksum) and pretrained.checksum is not None:
        again = f"python -m igpt_jax.features --checkpoint={checkpoint} --out={folder} --overwrite\n"
        again += f"python -m igpt_jax.probe --features={folder} --out={workdir}"
        said = f"The probe is of another model of step {pretrained.step} (checksum {probed}, this one's {pretrained.checksum}). Make one of this model:"
        return _line(said, problem=True) + f"<pre>{html.escape(again)}</pre>"
    picture, images_seen = io.BytesIO(), f"{result['counts']['train']:,} training images"
    draw(result, picture)
    caption = f"linear probes of step {result['step']}, {images_seen}; best layer {result['best']['layer']} of {result['model']['layers']}"
    return _strip([_figure(picture.getvalue(), caption)], "pictures wide")


def find_examples(pretrained: Pretrained, source: str | None = None) -> list[tuple[np.ndarray, str]]:
    """(uint8 [H, H, 3], name) of some test images of the model's data, or of another source, and of squares of scikit-learn's photographs, where they are."""
    found, size = [], pretrained.image_size
    try:
        dataset = pipeline.open_dataset(pipeline.config_for(pretrained.config, size, source), "test")
        for index in np.linspace(0, len(dataset) - 1, min(TEST_EXAMPLES, len(dataset))).astype(int).tolist():
            found.append((dataset.images(index, index + 1, pretrained.palette)[0], f"test {index}"))
    except USER_ERRORS as error:
        if source is not None:
            raise
        print(f"note: the page works, without test images as examples ({_why(error)}); --data=SOURCE takes those of other data", file=sys.stderr)
    try:
        squares = photographs()
    except USER_ERRORS as error:
        print(f"note: the page works, without photographs as examples ({_why(error)})", file=sys.stderr)
        squares = {}
    view = pipeline.view_of(pretrained.config, size)
    found += [(images.given_view(square, view, size), name) for name, square in squares.items()]
    return found


def _why(error):
    """What is wrong in short: an error's line up to its way out, which stands after a colon."""
    return one_line(error).split(": ")[0]


def _colours(palette):
    return f"{palette.size} colours" if palette.tokens_per_pixel == 1 else f"{palette.size} levels of each channel"


def _read_json(path):
    """What a file of the run says, or None where it is not there."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _enlarged(picture, scale=None):
    """uint8 [H, W, 3] as a PNG of at least SIDE pixels, sharp."""
    written = io.BytesIO()
    grid.picture_grid([picture[None]], scale=scale or math.ceil(SIDE / len(picture)), gap=0).save(written, "png")
    return written.getvalue()


def _figure(picture, caption, kind="png"):
    return f"<figure>{_image(picture, caption, kind)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(picture, meaning, kind="png"):
    return f'<img src="data:image/{kind};base64,{base64.b64encode(picture).decode()}" alt="{html.escape(meaning)}">'


def _animation(config, pictures, missing_HH):
    """The completions [I, H, H, 3] being drawn, as a figure of the page."""
    written, scale = io.BytesIO(), math.ceil(SIDE / len(missing_HH))
    frames = grid.drawing_frames(pictures, missing_HH, lambda drawn: grid.picture_grid(drawn[:, None], scale=scale, gap=2), grid.drawing_order(config))
    grid.save_animation(frames, written)
    return _strip([_figure(written.getvalue(), "as they were drawn: a GIF to save", "gif")], "pictures wide")


def _examples(examples):
    buttons = [f'<button data-index="{number}">{_image(_enlarged(pixels), name)}{name}</button>' for number, (pixels, name) in enumerate(examples)]
    return f'<div class="examples">{"".join(buttons)}</div>' if buttons else ""


def _strip(figures, kind="pictures"):
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _line(text, problem=False):
    return f'<div class="problem" role="alert">{html.escape(str(text))}</div>' if problem else f'<div class="said" role="status">{html.escape(text)}</div>'


def _bar(done, size):
    """A bar of how many rows are drawn."""
    return f'<progress class="rows" max="{size}" value="{done}" aria-label="rows drawn"></progress>'


# ---- the page ----


def make_page(pretrained: Pretrained, workdir: epath.Path, examples: list[tuple[np.ndarray, str]]) -> Any:
    """The page as gradio.Blocks; `examples` as `find_examples` gives them, the first one chosen."""
    import gradio

    config = pretrained.model_config
    kind = "Predicts the next pixel" if config.causal else "Predicts masked pixels"
    side, parameters = pretrained.image_size, f"{parameter_count(pretrained.model):,} parameters"
    about = f"{kind}. {config.layers} layers of width {config.width}, {parameters}, images of {side} × {side} pixels, step {pretrained.step}."
    with gradio.Blocks(title="Image GPT", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML("<h1>Image GPT</h1>" + _line(about))
        with gradio.Tab("Complete" if config.causal else "Fill a region"):
            parts = _play_tab(pretrained, examples)
            _connect(pretrained, examples, *parts)
        with gradio.Tab("Look inside") as tab:
            _look_tab(pretrained, examples, tab, parts[-1][0])
        for title, show in (("Palette", show_palette), ("Accuracy by layer", show_layers)):
            with gradio.Tab(title):
                gradio.HTML(partial(_or_problem, show, pretrained, workdir))  # called anew whenever the page is loaded
    return page


def _play_tab(pretrained, examples):
    """Lay out the first tab; its (choosers, region, settings, buttons, outputs)."""
    import gradio

    size, config = pretrained.image_size, pretrained.model_config
    whole = partial(gradio.Slider, step=1)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=320):
            file = gradio.File(label=f"Image, any size, up to {UPLOAD_MB} MB", height=150)
            offered = gradio.HTML(_examples(examples), js_on_load=EXAMPLE_CLICKED)
            if config.causal:
                region = [whole(0, size - 1, value=size // 2, label=f"Rows kept (of {size})", info="What the model is given; it draws the rest.")]
            else:
                quarter, half = size // 4, max(1, size // 2)
                places = [whole(0, size - 1, value=quarter, label=f"{name} of the region, pixels") for name in ("Top", "Left")]
                region = places + [whole(1, size, value=half, label=f"{name} of the region, pixels") for name in ("Height", "Width")]
            temperature = gradio.Slider(0, 2, value=1, step=0.05, label="Temperature", info="0: always the likeliest colour; above 1: bolder.")
            top_k = whole(0, config.vocabulary, value=0, label="Top-k", info=f"Draw among this many likely colours; 0: all {config.vocabulary}.")
            top_p = gradio.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="Draw among the likeliest colours that have this probability together.")
            completions = whole(1, MOST_COMPLETIONS, value=4, label="Completions", info="Pictures drawn at once.")
            seed = gradio.Number(0, label="Seed", info="The same image, settings and seed give the same pictures.", precision=0, minimum=0, maximum=2**31 - 1)
        with gradio.Column(scale=4, min_width=320):
            first = examples[0][0] if examples else None
            chosen = gradio.State(first)
            seen = gradio.HTML(show_input(pretrained, first, missing_pixels(pretrained, *(slider.value for slider in region))))
            with gradio.Row():
                start = gradio.Button("Complete" if config.causal else "Fill", variant="primary", scale=3)
                stop = gradio.Button("Stop", scale=1)
            said, made = gradio.HTML(_line("")), gradio.HTML("")
    return (file, offered), region, (completions, temperature, top_k, top_p, seed), (start, stop), (chosen, seen, said, made)


def _connect(pretrained, examples, choosers, region, settings, buttons, outputs):
    """What happens on a click."""
    import gradio

    (file, offered), (start, stop), (chosen, seen, said, made) = choosers, buttons, outputs
    view = pipeline.view_of(pretrained.config, pretrained.image_size)

    def show(pixels, *numbers):
        return show_input(pretrained, pixels, missing_pixels(pretrained, *numbers))

    def choose_file(path, *numbers):
        try:
            pixels, text = read_upload(path, pretrained.image_size, view) if path else None, _line("")
        except USER_ERRORS as error:
            pixels, text = None, _line(error, problem=True)
        return pixels, show(pixels, *numbers), text, ""

    def choose_example(event: gradio.EventData, *numbers: int) -> tuple:
        pixels = examples[event.index][0]
        return None, pixels, show(pixels, *numbers), _line(""), ""

    def generate(pixels, *numbers):
        yield from _watch(pretrained, pixels, numbers[: len(region)], *numbers[len(region) :])

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    running = start.click(generate, [chosen, *region, *settings], [said, made], **quiet)
    stop.click(lambda: _line("stopped"), None, said, cancels=running, **quiet)
    for event in (file.upload, file.clear):
        event(choose_file, [file, *region], [chosen, seen, said, made], cancels=running, **quiet)
    offered.click(choose_example, region, [file, chosen, seen, said, made], cancels=running, **quiet)
    for slider in region:
        slider.change(show, [chosen, *region], seen, trigger_mode="always_last", **quiet)


def _look_tab(pretrained, examples, tab, chosen):
    """Lay out and connect the tab that looks inside; it shows the picture that is `chosen` in the first tab, or one of its own examples."""
    import gradio

    size, config = pretrained.image_size, pretrained.model_config
    whole = partial(gradio.Slider, step=1)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=320):
            gradio.HTML(_line("The picture of the first tab, or one of these:"))
            offered = gradio.HTML(_examples(examples), js_on_load=EXAMPLE_CLICKED)
            place = [whole(0, size - 1, value=size // 2, label=f"{name} of the predicted pixel") for name in ("Row", "Column")]
            layer = whole(1, max(2, config.layers), value=1, label=f"Layer (of {config.layers})", interactive=config.layers > 1)
        with gradio.Column(scale=4, min_width=320):
            gradio.HTML(_line("Where the layer looks when it predicts the framed pixel: bright pixels have most of the attention's weight."))
            looked = gradio.HTML("", js_on_load=PIXEL_CLICKED)
            gradio.HTML(_line("The most likely colour of every pixel if a layer were the last (logit lens):"))
            predicted = gradio.HTML("")
    pixels, found = gradio.State(None), gradio.State(None)

    def look(picture, row, column, number):
        if picture is None:
            return None, ""
        try:
            computed = maps.pixel_maps(pretrained, batches.encode_pictures(pretrained, picture)[0], row, column)
            return computed, show_attention(pretrained, picture, computed, row, column, number)
        except Exception as error:
            return None, _line(explain(error).removeprefix("error: "), problem=True)

    def show_layer(picture, computed, row, column, number):
        return "" if computed is None else show_attention(pretrained, picture, computed, row, column, number)

    def click_pixel(event: gradio.EventData) -> tuple:
        return event.row, event.column

    def choose_example(event: gradio.EventData) -> np.ndarray:
        return examples[event.index][0]

    def read(picture):
        return "" if picture is None else _or_problem(show_lens, pretrained, picture)

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    latest = quiet | {"trigger_mode": "always_last"}
    offered.click(choose_example, None, pixels, **quiet)
    looked.click(click_pixel, None, place, **quiet)
    tab.select(lambda picture, own: picture if own is None else own, [chosen, pixels], pixels, **quiet)  # nothing is computed before the tab is opened
    chosen.change(lambda: None, None, pixels, **quiet)
    pixels.change(look, [pixels, *place, layer], [found, looked], **latest)
    pixels.change(read, pixels, predicted, **latest)
    for slider in place:
        slider.change(look, [pixels, *place, layer], [found, looked], **latest)
    layer.change(show_layer, [pixels, found, *place, layer], looked, **latest)


def _watch(pretrained, pixels, numbers, completions, temperature, top_k, top_p, seed):
    """Yields (line, pictures) for the page as they are drawn; what goes wrong is the line."""
    if pixels is None:
        yield _line("Choose an image first.", problem=True), ""
        return
    size, began = pretrained.image_size, time.monotonic()
    yield _line("preparing; new settings are compiled once"), ""
    try:
        missing_HH = missing_pixels(pretrained, *numbers)
        for done, pictures in draw_pictures(pretrained, pixels, missing_HH, completions, temperature, top_k, top_p, int(seed or 0)):
            figures = [_figure(_enlarged(picture), f"completion {number}") for number, picture in enumerate(pictures, 1)]
            text = f"row {done} of {size}" if done < size else f"{completions} made in {time.monotonic() - began:.1f} s"
            shown = _strip(figures)
            yield _line(text) + _bar(done, size), shown
        if pretrained.model_config.causal:
            yield _line(text), shown + _animation(pretrained.model_config, pictures, missing_HH)
    except Exception as error:
        yield _line(explain(error).removeprefix("error: "), problem=True), ""


def _or_problem(show, *arguments):
    """What `show` makes of a run's files, or the line that says what is wrong with them."""
    try:
        return show(*arguments)
    except (*USER_ERRORS, LookupError) as error:
        return _line(f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error, problem=True)


def _workdir(pretrained):
    """The directory of the run that a step's directory belongs to; for a model in a file that which the page proposes for its features and probes."""
    if pretrained.name is not None:
        return epath.Path("runs") / pretrained.name
    parent = epath.Path(pretrained.path).parent
    return parent.parent if parent.name == checkpoints.FOLDER else parent


def _main() -> None:
    arguments = _arguments()
    runtime.prepare()
    runtime.divide_cores()
    with tempfile.TemporaryDirectory(prefix="igpt_jax_", ignore_cleanup_errors=True) as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}  # read while Gradio is imported, and later
        try:
            for number in ENDS[1:]:
                signal.signal(number, signal.default_int_handler)  # ends as Ctrl-C does, without the folder
            check_alone("demo")
            if not importlib.util.find_spec("gradio"):
                raise ImportError(f"the page needs Gradio: {install('demo')}")
            pretrained = hub.load(arguments.checkpoint)
            page = make_page(pretrained, _workdir(pretrained), find_examples(pretrained, arguments.data))
            address = _launch(page, arguments)
        except ANY_ERROR as error:
            fail(error)
        ended = threading.Event()
        for number in ENDS:
            signal.signal(number, lambda *_: ended.set())
        print(f"{address} shows {pretrained.path}; Ctrl-C ends it", flush=True)
        ended.wait()
        _close_tunnels()
    sys.stdout.flush()
    os._exit(0)  # Gradio's threads would keep the program as long as a browser is open


def _close_tunnels() -> None:
    """End the processes that --share started; Gradio ends them at an exit that `os._exit` skips."""
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()


def _launch(page: Any, arguments: argparse.Namespace) -> str:
    """Serve the page from a thread; its address."""
    import gradio

    theme = gradio.themes.Default(primary_hue="slate", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    place = {"server_name": arguments.host, "server_port": arguments.port, "share": arguments.share, "max_file_size": f"{UPLOAD_MB}mb"}
    shown = {"theme": theme, "css": STYLE, "footer_links": [], "run_history": False, "ssr_mode": False, "quiet": True}
    try:
        _, local, public = page.launch(prevent_thread_lock=True, **place, **shown)
    except OSError as error:
        port = arguments.port or "7860 or the next 100"
        raise OSError(f"cannot listen on {arguments.host}, port {port}: give another --port, or --host") from error
    return public or local


def _arguments():
    parser = Parser(prog="python -m igpt_jax.demo", description=__doc__)
    parser.add_argument("--checkpoint", default=FIRST_MODEL, help=checkpoints.HELP)
    parser.add_argument("--data", help="data source whose test images are examples (see igpt_jax/data/config.py); default: the one the model was trained on")
    parser.add_argument("--port", type=integer(1, 65535), help="default: the first free one from 7860 on")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows it to the network")
    parser.add_argument("--share", action="store_true", help="also show it to everybody, through a server of Gradio's; off unless asked for")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
