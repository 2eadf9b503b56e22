"""README's generated blocks are those that the stored results make."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments.report import readme


def test_the_blocks_are_todays():
    written = (readme.ROOT / "README.md").read_text()
    assert readme.rewritten(written) == written, "run python -m experiments.report.readme"


def test_the_table_of_studies_is_todays_and_names_each_result():
    written = (readme.ROOT / "experiments/README.md").read_text()
    assert readme.rewritten(written, readme.studies()) == written, "run python -m experiments.report.readme"
    assert {path.stem for path in readme.RESULTS.glob("*.json")} <= {name for _, name, *_ in readme.STUDIES}


BEGIN, END = "<!-- aot:begin -->", "<!-- aot:end -->"


@pytest.mark.parametrize("markers", [(), (BEGIN,), (END,), (BEGIN, BEGIN, END), (BEGIN, END, END), (BEGIN, END, BEGIN, END)])
def test_a_missing_marker_is_named(markers):
    with pytest.raises(ValueError, match=f"{BEGIN} and {END} are missing: write both"):
        readme.rewritten(" x ".join(markers), {"aot": "text"})
    assert readme.rewritten(f"a{BEGIN}old{END}b", {"aot": "text\n"}) == f"a{BEGIN}\ntext\n{END}b"


def test_the_program_writes_the_blocks_of_both_files(tmp_path):
    for name in ("experiments", "configs", "igpt_jax"):
        shutil.copytree(readme.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for name in FILES:
        old = re.sub(r"(<!-- (\w+):begin -->).*?(<!-- \2:end -->)", r"\1 old \3", (readme.ROOT / name).read_text(), flags=re.DOTALL)
        assert " old " in old
        (tmp_path / name).write_text(old)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "experiments.report.readme"], cwd=tmp_path, env=environment, check=True)
    assert [(tmp_path / name).read_text() for name in FILES] == [(readme.ROOT / name).read_text() for name in FILES]


FILES = ("README.md", "experiments/README.md")
MEASURED = re.compile(r"\d[\d,]*\.\d+|\d[\d.,]* ?(?:%|points|nats|dB|images/s|times as fast|GiB|seconds)")
KNOWN = {  # numbers that no run of ours made
    "2.0895",  # the paper's loss of S
    "3.11", "2.0",  # of Python, of the licence
    "0.01", "0.003", "0.001", "0.0003",  # learning rates of the recipes
    "1.4", "6.8",  # of some public slides
}  # fmt: skip


def test_measured_numbers_stand_in_generated_blocks_alone():
    """What a run measured is read from its file, and never typed: neither here nor in the notebooks' text."""
    texts = {name: re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", (readme.ROOT / name).read_text(), flags=re.DOTALL) for name in FILES}
    for path in sorted((readme.ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        texts[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    typed = {name: sorted(set(MEASURED.findall(text)) - KNOWN) for name, text in texts.items()}
    assert len(typed) == 6 and not any(typed.values()), typed


PROBES = "linear probe at the best layer ({probe/best/layer} of {probe/last/layer}), at the last"
RUN = ("{probe/model/parameters:,} parameters, {test/step:,} steps", "(per-position baseline: {baselines/per_position:.3f})", "{test/nats_per_pixel:.3f}")
LAYERS = "next pixel, {curves/0/model/layers} layers of width {curves/0/model/width}, 1 seed"
BEST = "{%curves/0/best/test:.1f} % at {curves/0/best/layer} of {curves/0/model/layers}, {%curves/0/mean/-1:.1f} %: "
BEST += "{%curves/0/lost_by_the_last_layer/mean:+.1f} points"
PIXELS = "{%raw_pixels/CIFAR-10 (JPEG q75):.1f} %"
GAIN = "{%PAIR/gain:+.1f} ({%PAIR/interval/0:+.1f} to {%PAIR/interval/1:+.1f}): {PAIR/verdict}: {PAIR/why}"
LABELS = "; ".join(f"{{%curves/N/accuracies/{size}/mean:.1f}} +- {{%curves/N/accuracies/{size}/std:.1f}}" for size in (4, 25, 100))
MODELS = [("autoregressive", "pretrained"), ("bert", "pretrained"), ("autoregressive", "scratch"), ("bert", "scratch")]
TUNED = "{{%summary/objective={},start={},loss=LOSS/mean:.1f}} %"
TUNED = "{}, {}; {}, {}".format(*(TUNED.format(*model) for model in MODELS))
COLOURS = "{sweep/colours=8/psnr/N:.1f}, {sweep/colours=512/psnr/N:.1f}, {sweep/colours=4096/psnr/N:.1f}"
KEYS = {  # file -> for each of its rows what stands in the first column, last what the column of our numbers is, each number as the key that it is read from
    "digits": [RUN, (PROBES, "{%probe/best/test:.1f} %, {%probe/last/test:.1f} %, {%probe/raw_pixels/test:.1f} %")],
    "cifar10_small": [(RUN[0], "(unigram baseline: {baselines/unigram:.3f})", RUN[-1]), (PROBES, "{%probe/best/test:.1f} %, {%probe/last/test:.1f} %")],
    "fashion_mnist_small": [RUN, (PROBES, "{%probe/best/test:.1f} %, {%probe/last/test:.1f} %")],
    "accuracy_by_layer": [(LAYERS, BEST), (PIXELS,)],
    "twelve_layers/accuracy_by_layer": [(LAYERS, BEST), (PIXELS,)],
    "accuracy_by_loss": [
        ("gain of {PAIR/larger} over {PAIR/smaller} ".replace("PAIR", pair), GAIN.replace("PAIR", pair)) for pair in ("verdict/pairs/0", "verdict/pairs/1")
    ],
    "low_data": [
        (f"{way}, {name}, 4, 25, 100 labels", LABELS.replace("N", f"objective={key},way={way}"))
        for key, name in (("autoregressive", "next pixel"), ("bert", "masked pixels")) for way in ("linear probe", "fine-tuned")
    ],
    "resolution": [
        ("resolution 8, 12, 16", "; ".join(f"{{%sides/side={side}/accuracy/mean:.1f}} +- {{%sides/side={side}/accuracy/std:.1f}}" for side in (8, 12, 16))),
        ("; ".join(f"{{sides/side={side}/nats_per_pixel/mean:.3f}} +- {{sides/side={side}/nats_per_pixel/std:.3f}}" for side in (8, 12, 16)),),
    ],
    "objectives": [
        ("at {recipe/data/image_size} x {recipe/data/image_size}, {recipe/steps:,} steps", "(counts: {pretraining/autoregressive/baselines/per_position:.3f})",
         "{pretraining/autoregressive/nats_per_pixel:.3f}, {pretraining/bert/nats_per_pixel:.3f}"),
        ("{labels_per_class} labels of each class", "{%probe/autoregressive/best/test:.1f} %, {%probe/bert/best/test:.1f} %"),
        ("joint loss", TUNED.replace("LOSS", "joint")),
        ("classification loss", TUNED.replace("LOSS", "classification")),
        ("{%bert_votes/mean_one_mask:.1f} %, {%bert_votes/mean_vote_of_5:.1f} %",),
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
    block = (readme.ROOT / "README.md").read_text().split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()[2:]]
    files, name = {}, ""
    for what, _, ours, source, _ in rows[:-1]:
        name = name if source == "as above" else re.search(r"\(experiments/results/([^)]+)\.json\)$", source)[1]
        files.setdefault(name, []).append((what, ours))
    assert rows[-1][2] == "not run here" and files.keys() == KEYS.keys()
    for name, lines in files.items():
        found = json.loads((readme.RESULTS / f"{name}.json").read_text())
        for (what, ours), (*inside, column) in zip(lines, KEYS[name], strict=True):
            assert ours == written(column, found), f"{name}: {what}"
            for template in inside:
                assert written(template, found) in what, f"{name}: {what}"
