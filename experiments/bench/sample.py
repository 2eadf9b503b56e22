"""Sampling of whole images beside Hugging Face's generate: `python -m experiments.bench.sample [--model=s|m|l] [--batch=N]`.

ours            igpt_jax.sampling.generate.sample_codes: one compiled loop with caches of keys and values
hugging-face    transformers' ImageGPT and its generate(use_cache=True, do_sample=True)

Both sample from the full softmax of a model of the same sizes with random parameters. With bfloat16, Hugging Face's parameters have that type; ours have it
in products only.
"""

import argparse
import itertools

import jax
import numpy as np

from experiments.bench import models, rounds
from igpt_jax.cli import Parser, integer
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.sampling.generate import sample_codes

PROGRAMS = {"ours": (), "hugging-face": ("torch", "transformers")}
COLUMNS = {
    "s": ("seconds", "{:,.2f}"),
    "images/s": ("images_per_second", "{:,.2f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=integer(1), default=16, help="images that are sampled together")
    small = models.SMALL | {"positions": 16, "batch": 2, "rounds": 2}
    return rounds.start("sample", bench, parser, argv, PROGRAMS, small, models.GPU | {"batch": 64}, models.SIZES, all_cores=True)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    config, batch = models.model_config(arguments), arguments.batch
    makers = {"ours": ours, "hugging-face": hugging_face}
    programs = {name: makers[name](config, batch) for name in arguments.programs}
    programs["ours"]()  # compiles
    rows = rounds.alternate(programs, arguments.rounds)
    summary = rounds.summary(rows, batch, "images")
    for values in summary.values():
        if "failed" not in values:
            values["tokens_per_second"] = values["images_per_second"] * config.positions
    print(f"{batch} images of {config.positions} tokens, {config.layers} layers, width {config.width}, {config.dtype}")
    rounds.print_table(summary, COLUMNS)
    what = "images made from nothing, all tokens of all of them"
    return {"what": what, "sizes": models.sizes(config), "dtype": config.dtype, "batch": batch, "programs": summary, "rounds": rows}


def ours(config: ModelConfig, batch: int) -> rounds.Program:
    """Return our sampler as a program."""
    model, keys, prefix = models.make_model(config), map(jax.random.key, itertools.count()), np.zeros((1, 0), np.int32)

    def turn():
        key = next(keys)  # the result is a numpy array, so there is no device to wait for
        return {"seconds": rounds.seconds_each(lambda: sample_codes(model, prefix, key, batch), 1, lambda _: None, warm=0)}

    return turn


def hugging_face(config: ModelConfig, batch: int) -> rounds.Program:
    """Return Hugging Face's sampler as a program."""
    import torch

    device = rounds.torch_device()
    model = models.hugging_face(config, device).to(getattr(torch, config.dtype)).eval()
    full_softmax = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    start_B1 = torch.full((batch, 1), config.vocabulary, device=device)

    def generate():
        codes = model.generate(start_B1, max_new_tokens=config.positions, use_cache=True, **full_softmax)
        if codes.shape != (batch, config.positions + 1):
            raise ValueError(f"generate returned {list(codes.shape)} codes, not {[batch, config.positions + 1]}")
        return codes

    return lambda: {"seconds": rounds.seconds_each(generate, 1, rounds.torch_wait, warm=0)}


if __name__ == "__main__":
    main()
