"""README's generated blocks are those that the stored results make."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from docs import generate
from experiments.report import readme


@pytest.mark.parametrize("path", readme.files(), ids=lambda path: path.name)
def test_the_blocks_of_a_file_are_todays(path):
    written = path.read_text()
    assert readme.rewritten(written, readme.files()[path]) == written, "run python -m experiments.report.readme"


def test_the_table_of_studies_names_each_result():
    assert {path.stem for path in readme.RESULTS.glob("*.json")} <= {name for _, name, *_ in readme.STUDIES}


BEGIN, END = "<!-- aot:begin -->", "<!-- aot:end -->"


@pytest.mark.parametrize("markers", [(), (BEGIN,), (END,), (BEGIN, BEGIN, END), (BEGIN, END, END), (BEGIN, END, BEGIN, END)])
def test_a_missing_marker_is_named(markers):
    with pytest.raises(ValueError, match=f"{BEGIN} and {END} are missing: write both"):
        readme.rewritten(" x ".join(markers), {"aot": "text"})
    assert readme.rewritten(f"a{BEGIN}old{END}b", {"aot": "text\n"}) == f"a{BEGIN}\ntext\n{END}b"


def test_the_program_writes_the_blocks_of_all_files(tmp_path):
    for name in ("experiments", "configs", "igpt_jax", "docs"):
        shutil.copytree(readme.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__", "_build"))
    for name in FILES:
        old = re.sub(r"(<!-- (\w+):begin -->).*?(<!-- \2:end -->)", r"\1 old \3", (readme.ROOT / name).read_text(), flags=re.DOTALL)
        assert " old " in old
        (tmp_path / name).write_text(old)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "experiments.report.readme"], cwd=tmp_path, env=environment, check=True)
    assert [(tmp_path / name).read_text() for name in FILES] == [(readme.ROOT / name).read_text() for name in FILES]


FILES = ("README.md", *(f"docs/{page}" for page in readme.DOCS))
PAGES = ("README.md", *(f"docs/{name}" for name in sorted(generate.pages())))
MEASURED = re.compile(r"\d[\d,]*\.\d+|\d[\d.,]* ?(?:%|points|nats|dB|images/s|times as fast|GiB|seconds)")
KNOWN = {  # numbers that no run of ours made
    "2.0895",  # the paper's loss of S
    "3.11", "2.0",  # of Python, of the licence
    "0.01", "0.003", "0.001", "0.0003",  # learning rates of the recipes
    "1.4", "6.8",  # of some public slides
    "96.4", "94.0", "2.0466", "15 %", "0.999", "0.04", "0.10",  # of the paper
    "2.4", "2.6", "4.26", "1.702", "16.7",  # sections of the paper, a version, a constant of the model, millions of colours of 24 bits
    "0.11", "0.17", "2 GiB",  # versions of other programs, what a file can hold
    "95 %", "1 %", "5 seconds",  # of intervals, of pictures that may fail, between two tries
}  # fmt: skip


def test_measured_numbers_stand_in_generated_blocks_alone():
    """What a run measured is read from its file, and never typed: neither here nor in the notebooks' text."""
    texts = {name: re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", (readme.ROOT / name).read_text(), flags=re.DOTALL) for name in PAGES}
    for path in sorted((readme.ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        texts[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    texts |= {name: re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL) for name, text in texts.items() if name.startswith("docs/")}
    typed = {name: sorted(set(MEASURED.findall(text)) - KNOWN) for name, text in texts.items()}
    assert len(typed) == len(PAGES) + 4 and not any(typed.values()), typed


PROBES = "linear probe at the best layer ({probe/best/layer} of {probe/last/layer}), at the last"
PALETTE = "at {palette/data/image_size} x {palette/data/image_size} in {palette/size} colours"
COUNTS = "(per-position baseline: {baselines/per_position:.3f}, unigram baseline: {baselines/unigram:.3f})"
RUN = (PALETTE, "{probe/model/parameters:,} parameters, {test/step:,} steps", COUNTS, "{test/nats_per_pixel:.3f}")
SHARE = "{%PLACE:.1f} % ({%ENDS/0:.1f} to {%ENDS/1:.1f})"
BEST, LAST, PIXELS = (SHARE.replace("PLACE", f"{place}").replace("ENDS", f"{ends}") for place, ends in (
    ("curves/N/best/test", "curves/N/best/interval"), ("curves/N/mean/-1", "curves/N/interval/-1"), ("raw_pixels/N/test", "raw_pixels/N/interval"),
))  # fmt: skip
LAYERS = (
    "{curves/N/data}, {curves/N/way} at the best layer", "next pixel, {curves/N/model/layers} layers of width {curves/N/model/width}, 1 seed",
    BEST + " at {curves/N/best/layer} of {curves/N/model/layers}, " + LAST + ": {%curves/N/lost_by_the_last_layer/mean:+.1f} points",
)  # fmt: skip
OF_PIXELS = ("{raw_pixels/N/data} at {raw_pixels/N/resolution} x {raw_pixels/N/resolution}, {raw_pixels/N/way} of raw pixels", PIXELS)
GAIN = "{%PAIR/gain:+.1f} ({%PAIR/interval/0:+.1f} to {%PAIR/interval/1:+.1f})"
WITH_INTERVAL = "{{%{0}:.1f}} ({{%{1}/0:.1f}} to {{%{1}/1:.1f}})"
OBJECTIVES = (
    "linear probe, next pixel", "kNN, next pixel", "linear probe, raw pixels", "kNN, raw pixels",
    "fine-tuned, next pixel, pretrained, joint", "fine-tuned, next pixel, scratch, joint",
    "linear probe, masked pixels, 5 masks", "kNN, masked pixels, 5 masks",
    *(f"fine-tuned, masked pixels, {start}, joint, {masks}" for start in ("pretrained", "scratch") for masks in ("5 masks", "1 mask")),
)  # fmt: skip
WAYS = 2  # linear probe, kNN


def intervals(*places):
    """The template of mean and 95 % interval of the rows in these places of a study of few labels."""
    return "; ".join(WITH_INTERVAL.format(f"rows/{place}/mean", f"rows/{place}/interval") for place in places)


def of_sides(mean, interval):
    """The template of an accuracy at each resolution with its 95 % interval, which are under these keys."""
    return "; ".join(WITH_INTERVAL.format(f"sides/side={side}/{mean}", f"sides/side={side}/{interval}") for side in (8, 12, 16))


COLOURS = "{sweep/colours=8/psnr/N:.1f}, {sweep/colours=512/psnr/N:.1f}, {sweep/colours=4096/psnr/N:.1f}"
KEYS = {  # file -> for each of its rows what stands in the first column, last what the column of our numbers is, each number as the key that it is read from
    "digits": [RUN, (PROBES, "{%probe/best/test:.1f} %, {%probe/last/test:.1f} %, {%probe/raw_pixels/test:.1f} %")],
    "fashion_mnist_small": [RUN, (PROBES, "{%probe/best/test:.1f} %, {%probe/last/test:.1f} %")],
    "cifar10_16": [
        ("at {images/image_size} x {images/image_size} in {images/colours} colours", "{model/parameters:,} parameters, {test/step:,} steps", COUNTS,
         "{test/nats_per_pixel:.3f}"),
        ("at step {before/step:,}", "{before/nats_per_pixel:.3f}"),
    ],
    "accuracy_by_layer": [tuple(text.replace("/N/", f"/{number}/") for text in texts) for texts in (LAYERS, OF_PIXELS) for number in range(WAYS)],
    "accuracy_by_loss": [
        *(("gain of {PAIR/larger} over {PAIR/smaller} ".replace("PAIR", pair), GAIN.replace("PAIR", pair)) for pair in ("gains/0", "gains/1")),
        ("raw pixels", WITH_INTERVAL.format("raw_pixels/accuracy", "raw_pixels/interval")),
    ],
    "low_data": [
        ("next pixel, {models/autoregressive/layers}x{models/autoregressive/width} at", "{models/autoregressive/nats_per_pixel:.3f}"),
        *(
            (f"{what}, 4, 25, 400 labels of each class, 5 draws", intervals(place, place + 4, place + 8))
            for place, what in enumerate(("linear probe, next pixel", "kNN, next pixel", "linear probe, raw pixels", "kNN, raw pixels"))
        ),
        ("fine-tuned, next pixel, pretrained, joint, 4 labels of each class, 3 draws", intervals(12)),
    ],
    "resolution": [
        ("probe at the best layer, images of resolution 8, 12, 16", of_sides("accuracy/mean", "interval")),
        ("raw pixels", of_sides("raw_pixels", "raw_pixels_interval")),
        ("; ".join(f"{{sides/side={side}/nats_per_pixel/mean:.3f}} +- {{sides/side={side}/nats_per_pixel/std:.3f}}" for side in (8, 12, 16)),),
    ],
    "objectives": [
        *(
            (f"{name}, {{models/{key}/layers}}x{{models/{key}/width}} at", f"{{models/{key}/nats_per_pixel:.3f}}")
            for key, name in (("autoregressive", "next pixel"), ("bert", "masked pixels"))
        ),
        *((f"{what}, {{settings/labels_per_class}} labels of each class", intervals(place)) for place, what in enumerate(OBJECTIVES)),
    ],
    "bench_palette": [
        ("palette of {colours} colours on {pixels:,} pixels", "{median/ours/mse:.6f}, {median/scikit-learn/mse:.6f}, {median/faiss/mse:.6f}"),
        ("{median/ours/seconds:.1f}, {median/scikit-learn/seconds:.1f}, {median/faiss/seconds:.1f}",),
    ],
    "colour_coding": [(f"{{images/{n}/name}} in 8, 512, 4096 colours", COLOURS.replace("N", str(n))) for n in range(2)],
}  # fmt: skip


def read_key(found, key):
    """The value under a key like curves/0/mean or, of the element of a list that has these values, sweep/colours=8/psnr; % makes percent of it."""
    scale = 100 if key[0] == "%" else 1
    for part in key.removeprefix("%").split("/"):
        if isinstance(found, dict):
            found = found[part]
        elif part in ("mean", "std"):
            found, scale = np.multiply(scale, found), 1  # before rounding, of which a half may fall either way
            found = np.mean(found) if part == "mean" else np.std(found, ddof=1)
        elif "=" in part:
            wanted = dict(one.split("=") for one in part.split(","))
            [found] = [one for one in found if {name: str(one[name]) for name in wanted} == wanted]
        else:
            found = found[int(part)]
    return scale * found if scale > 1 else found


def written(template, found):
    return re.sub(r"\{([^{}:]+)(?::([^{}]*))?\}", lambda one: format(read_key(found, one[1]), one[2] or ""), template)


def test_each_number_of_the_results_table_is_the_one_under_its_key():
    """Of the file that the row names: neither validation for test, nor the last layer for the best."""
    block = (readme.ROOT / "docs/reference/results.md").read_text().split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()[2:]]
    files, name = {}, ""
    for what, _, ours, source, _ in rows[:-1]:
        name = name if source == "as above" else re.search(r"\(repo:experiments/results/([^)]+)\.json\)$", source)[1]
        files.setdefault(name, []).append((what, ours))
    assert rows[-1][2] == "not run here" and files.keys() == KEYS.keys()
    for name, lines in files.items():
        found = json.loads((readme.RESULTS / f"{name}.json").read_text())
        for (what, ours), (*inside, column) in zip(lines, KEYS[name], strict=True):
            assert ours == written(column, found), f"{name}: {what}"
            for template in inside:
                assert written(template, found) in what, f"{name}: {what}"
