"""The notebooks: each runs from top to bottom, can be opened in Colab, and keeps the pictures that its own run made."""

import json
import os
import pathlib
import re

import pytest

from experiments.report.owner import owner

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
SECONDS = 300  # that a notebook may take on a Colab CPU
KILOBYTES = 600  # of a notebook with its pictures


def read(path):
    return json.loads(path.read_text())


def code_cells(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def test_all_four_are_there():
    assert NAMES == ["colour_coding", "completions", "load_openai_weights", "probe_by_layer"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_first_cells_open_and_install_it_anywhere(path):
    cells = read(path)["cells"]
    badge = f"(https://colab.research.google.com/github/{owner()}/igpt_jax/blob/main/notebooks/{path.name})"
    assert cells[0]["cell_type"] == "markdown" and badge in "".join(cells[0]["source"])
    first = "".join(code_cells(path)[0]["source"])
    assert 'find_spec("igpt_jax") is None' in first and "%pip install" in first and "git clone --quiet --depth=1 {REPOSITORY} repository" in first
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert text.count("github.com") == 1, "the repository's address is defined once"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_kept_outputs_are_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output["evalue"] for output in outputs if output["output_type"] == "error"]
    assert "arning" not in "".join("".join(output["text"]) for output in outputs if output.get("name") == "stderr")
    assert any("image/png" in output.get("data", {}) for output in outputs), "GitHub shows a picture"
    assert path.stat().st_size < KILOBYTES * 1000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_text_holds_no_results_and_names_what_exists(path):
    text = "\n".join("".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    assert not re.search(r"\d\s?(%|dB|nats|seconds)|\d\.\d", text), "results are printed by cells, not typed"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (path.parent / target).exists(), target
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_from_top_to_bottom(path, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
    pytest.importorskip("ipykernel", reason="needs the extra `notebooks`")
    if path.stem == "load_openai_weights":
        pytest.importorskip("tensorflow", reason="needs the extra `convert`: TensorFlow reads TensorFlow's checkpoints")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a reader's machine has it: one device, compiled well
    client.execute(env=environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
    made, kept = ([len(cell.get("outputs", [])) > 0 for cell in cells if cell["cell_type"] == "code"] for cells in (notebook.cells, read(path)["cells"]))
    assert made == kept, "the kept outputs are of the same cells: run the notebook again and keep its outputs"
