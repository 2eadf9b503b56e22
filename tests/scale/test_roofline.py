"""The table of least times: which batches are compiled, kinds of measured kernels, the stored file; all without compiling."""

import json
import pathlib

import pytest

from experiments.bench.models import SIZES
from experiments.scale import roofline

RESULTS = pathlib.Path(__file__).parents[2] / "experiments/results"
MODEL = roofline.Model("configs/s.py", 2, 16)


def compiled(largest, rows, each=2.0):
    """Compile as `main` does, with a step of 10 + 2 for each image of 100 bytes, for which XLA computes again above `largest`."""
    asked = []
    for tree, batch in roofline.steps("S", MODEL, rows):
        row = {"model": "S", "tree": tree, "batch": batch, "argument_bytes": 10, "peak_bytes": 10 + each * batch, "limit_bytes": 100}
        rows[f"{tree}: {MODEL.command(batch)}"] = row | {"recomputed": int(batch > largest)} if batch < 64 else {"refused": "error", "batch": batch} | row
        asked.append((tree, batch))
    return asked


@pytest.mark.parametrize(("largest", "asked"), [(32, [16, 32, 40]), (40, [16, 32, 40, 48]), (24, [16, 32, 24]), (16, [16, 32, 24, 16])])
def test_the_largest_batch_is_searched_from_the_memory_of_the_measured_one(largest, asked):
    rows = {}
    assert compiled(largest, rows) == [*(("after", batch) for batch in asked), ("before", 16)]


def test_candidates_are_powers_of_two_and_multiples_of_8():
    assert [roofline.candidate(batch) for batch in (1, 3, 4, 7, 9, 31, 32)] == [1, 2, 4, 4, 8, 24, 32]
    assert [roofline.candidate(batch, up=True) for batch in (1, 3, 5, 9, 32)] == [1, 4, 8, 16, 32]


def test_measured_kernels_have_the_kind_of_the_compiled_ones_of_their_name():
    names = [
        {"name": "gemm_fusion_dot", "kind": "products", "h200": 0.003}, {"name": "fwd", "kind": "attention", "h200": 0.001},
        {"name": "loop_slice_fusion", "kind": "elementwise", "h200": 0.002}, {"name": "loop_slice_fusion", "kind": "copies", "h200": 0.001},
    ]  # fmt: skip
    kernels = {"nvjet_sm90": 0.4, "loop_slice_fusion": 0.3, "cudnn_sdpa_bprop": 0.2, "Memset 0": 0.1}
    trace = {"milliseconds": 10.0, "largest": [{"kernel": name, "share": share} for name, share in kernels.items()]}
    measured, least = roofline.compared(trace, names)
    assert dict(measured) == pytest.approx({"products": 4, "elementwise": 3, "attention": 2, "copies": 1})
    assert dict(least) == pytest.approx({"products": 3, "attention": 1, "elementwise": 3})


def test_the_stored_page_is_made_from_the_stored_numbers():
    stored = json.loads((RESULTS / "roofline.json").read_text())
    assert (RESULTS / "roofline.md").read_text() == roofline.markdown(stored)
    for row in stored["rows"].values():
        if "refused" not in row:
            products, attention = ({kind["kind"]: kind["flops"] for kind in row["kinds"]}[name] for name in ("products", "attention"))
            name, side = row["model"].split(", ")[0], int(row["model"].split()[-1])
            # the gradient of the tokens' embedding is a product with one-hot codes in the tree `after`, which training_flops does not count
            embedding = 2 * row["batch"] * side**2 * 512 * SIZES[name.lower()]["width"] if row["tree"] == "after" else 0
            counted = products - embedding + attention * 6 / 7  # training_flops counts 6 of 7
            assert counted == pytest.approx(row["flops"], rel=0.1 if row["recomputed"] else 1e-9)
