"""README's generated blocks are those that the stored results make."""

import json
import re
import statistics

import pytest

from experiments import readme, results_table


def test_the_blocks_are_todays():
    written = (readme.ROOT / "README.md").read_text()
    assert readme.rewritten(written) == written, "run python -m experiments.readme"


def test_the_table_of_studies_is_todays_and_names_each_result():
    written = (readme.ROOT / "experiments/README.md").read_text()
    assert readme.rewritten(written, readme.studies()) == written, "run python -m experiments.readme"
    assert {path.stem for path in readme.RESULTS.glob("*.json")} <= {name for _, name, *_ in readme.STUDIES}


def test_a_missing_marker_is_named():
    with pytest.raises(ValueError, match="<!-- aot:begin --> and <!-- aot:end --> are missing: write both"):
        readme.rewritten("nothing")


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


def test_results_in_the_readme_come_from_files():
    """Each row of the results table names its file; each number in the row's own column stands in it, as text or rounded, or is of a list of its numbers."""
    block = (readme.ROOT / "README.md").read_text().split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    lines = [line for line in block.strip().splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows
    path = None
    for what, _, ours, source, _ in rows:
        if ours == "not run here":
            continue
        path = path if source == "as above" else re.search(r"\(([^)]+)\)$", source).group(1)
        numbers = list(_numbers(json.loads((readme.ROOT / path).read_text())))
        for text in re.findall(r"[+-]?\d[\d,]*\.?\d*", ours):
            digits = len(text.partition(".")[2])
            value = float(text.replace(",", ""))
            scales = (1, 100)  # a share may be written in percent
            near = 0.5 * 10**-digits + 1e-9  # what rounding may do, ties either way
            assert any(abs(number * scale - value) <= near for number in numbers for scale in scales), f"{what}: {text} is not in {path}"


def _numbers(tree):
    """All numbers, and of each list of them mean and deviation."""
    if isinstance(tree, dict | list):
        values = list(tree.values() if isinstance(tree, dict) else tree)
        for value in values:
            yield from _numbers(value)
        if isinstance(tree, list) and len(values) > 1 and all(isinstance(value, int | float) for value in values):
            yield from (statistics.mean(values), statistics.stdev(values))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def test_each_number_of_a_result_is_one_of_its_file(tmp_path):
    """Another value in a file makes another block."""
    for name in results_table.ROWS:
        if (readme.RESULTS / f"{name}.json").exists():
            changed = json.loads((readme.RESULTS / f"{name}.json").read_text(), parse_float=lambda text: 0.875 * float(text))
            (tmp_path / f"{name}.json").parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    ours = [line.split("|")[3] for line in results_table.block(readme.RESULTS).splitlines()[2:-1]]
    others = [line.split("|")[3] for line in results_table.block(tmp_path).splitlines()[2:-1]]
    assert len(ours) == len(others) > 10
    assert not [number for number, other in zip(ours, others, strict=True) if number == other]
