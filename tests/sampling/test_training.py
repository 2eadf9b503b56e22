"""Pictures of a run on its way: the same images and draws each time, numbers that do not change, and a run that goes on where they cannot be drawn."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from igpt_jax.sampling import training
from igpt_jax.training import metrics
from tests.runs import make_workdir, recipe

SMALL = {"steps": 4, "eval_every": 2, "save_every": 4, "model__layers": 1}


@pytest.fixture
def pictures(monkeypatch):
    """(step, name, picture) of everything that a run shows."""
    shown = []
    monkeypatch.setattr(metrics.Writer, "write_picture", lambda writer, *given: shown.append(given))
    return shown


def losses(workdir):
    return [line["train/loss"] for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if "train/loss" in line]


def test_each_evaluation_completes_the_same_images_and_the_run_is_the_same_bit_for_bit(tmp_path, pictures):
    with_pictures, without = make_workdir(tmp_path / "with"), make_workdir(tmp_path / "without")
    found = training.train(recipe(eval_pictures=3, **SMALL), with_pictures)
    assert training.train(recipe(**SMALL), without) == found and losses(with_pictures) == losses(without)
    assert [(step, name) for step, name, _ in pictures] == [(2, "validation/completions"), (4, "validation/completions")]
    first, second = (picture for _, _, picture in pictures)
    assert first.shape == second.shape and first.dtype == np.uint8 and first.shape[0] > 3 * 96
    tile = first.shape[1] // 4
    np.testing.assert_array_equal(first[:, :tile], second[:, :tile])  # what the model is given
    np.testing.assert_array_equal(first[:, 3 * tile + 4 :], second[:, 3 * tile + 4 :])  # the originals
    assert (first[:, tile : 2 * tile] != first[:, 2 * tile : 3 * tile]).any()  # two completions


@pytest.mark.slow
def test_a_bert_model_fills_the_middle_at_each_evaluation(tmp_path, pictures):
    training.train(recipe(eval_pictures=2, model__objective="bert", **SMALL), make_workdir(tmp_path))
    assert [step for step, _, _ in pictures] == [2, 4]


@pytest.mark.slow
def test_where_memory_is_short_a_line_says_it_and_the_run_ends_as_planned(tmp_path, pictures, monkeypatch, capsys):
    calls = []

    def short(*_, **__):
        calls.append(1)
        raise MemoryError("a picture takes 3 GiB")

    monkeypatch.setattr(training, "complete", short)
    assert training.train(recipe(eval_pictures=2, **SMALL), make_workdir(tmp_path))["images"] == 144
    assert calls == [1] and not pictures  # tried once
    assert "config.eval_pictures: no more pictures are drawn: a picture takes 3 GiB" in capsys.readouterr().out


def test_several_processes_draw_none_and_say_it(monkeypatch):
    lines = []
    run = type("Run", (), {"writer": type("Writer", (), {"say": lambda self, line: lines.append(line)})()})()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not training.draw(training.Evaluated(run, 2, None, {"images": 1.0}), 4)
    assert "no pictures are drawn in a run of 2 processes" in lines[0]


@pytest.mark.parametrize(
    ("metric", "names", "objective", "program"),
    [
        ("accuracy", ("a",), "autoregressive", "evaluate --checkpoint=w/best"),
        ("", ("a",), "bert", "features --checkpoint=w --out=w/features"),
        ("", (), "autoregressive", "sample --checkpoint=w --out=w/completions.png"),
        ("", (), "bert", "sample --checkpoint=w --out=w/completions.png --fill=2,2,4,4"),
    ],
)
def test_the_next_program_suits_the_data(metric, names, objective, program):
    """Features of images without labels cannot be probed."""
    config = recipe(best__metric=metric, data__image_size=8)
    setup = SimpleNamespace(model_config=SimpleNamespace(causal=objective == "autoregressive"))
    run = SimpleNamespace(config=config, workdir="w", best={"step": 1} if metric else None, training=SimpleNamespace(class_names=names), setup=setup)
    assert training.next_program(training.Evaluated(run, 1, None, {})) == program
