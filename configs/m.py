"""iGPT-M on ImageNet at 32 x 32: 455,157,760 parameters (paper 3.3, table 5).

    python -m igpt_jax.quantize --config=configs/m.py --workdir=runs/m
    python -m igpt_jax.train --config=configs/m.py --workdir=runs/m

One H100 (79 GiB): with --config.gradient_accumulation_steps=4 the batch needs 39 GiB without recomputation (igpt_jax.aot, not run).
Hardware: not run as a whole; experiments/results/gpu has the speed of an H200. 3.018e12 FLOP per image * 128 images * 1,000,000 steps = 3.86e20 FLOP.
One H100 at 40 % of its bf16 peak of 989e12 FLOP/s: 3.86e20 / (0.40 * 989e12) = 9.77e5 s = 11 days.
Expected: 2.0614 nats per pixel, the loss of OpenAI's model with OpenAI's palette. Not run here.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.layers = 36
    config.model.width = 1024
    config.model.heads = 8  # of 128
    config.optim.learning_rate = 0.003  # table 5
    return config
