"""How long the probes take: every layer and the pixels count, by the images that are fitted and the values of C."""

from types import SimpleNamespace

import numpy as np

from igpt_jax.probing import cost


def splits(images, classes=10):
    return SimpleNamespace(labels={"train": np.zeros(images, int), "test": np.zeros(7, int)}, classes=classes)


def test_every_width_and_value_of_c_counts(monkeypatch):
    monkeypatch.setattr(cost, "_product_seconds", lambda images, width, logits: images * width * logits * 1e-9)
    assert cost.lbfgs_seconds(splits(1000), [64, 64, 192], 7) == 2 * cost.STEPS * 1000 * (64 + 64 + 192) * 70 * 1e-9


def test_more_images_than_are_timed_take_longer(monkeypatch):
    monkeypatch.setattr(cost, "MEASURED", 8)
    clock = iter(range(1000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))  # a product takes a second
    assert cost._product_seconds(8, 4, 3) == 1 and cost._product_seconds(80, 4, 3) == 10 and cost._product_seconds(2, 4, 3) == 1
