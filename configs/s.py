"""iGPT-S on ImageNet at 32 x 32: 76,571,648 parameters (paper 3.3, table 5).

    python -m igpt_jax.quantize --config=configs/s.py --workdir=runs/s
    python -m igpt_jax.train --config=configs/s.py --workdir=runs/s

One H100 (79 GiB): the batch needs 44 GiB without recomputation (igpt_jax.aot, not run).
Hardware: not run as a whole; experiments/results/gpu has the speed of an H200. 5.428e11 FLOP per image * 128 images * 1,000,000 steps = 6.95e19 FLOP.
One H100 at 40 % of its bf16 peak of 989e12 FLOP/s: 6.95e19 / (0.40 * 989e12) = 1.76e5 s = 2 days.
Expected: 2.0895 nats per pixel, the loss of OpenAI's model with OpenAI's palette. Not run here.
"""

from configs import base


def get_config():
    return base.get_config()  # the base recipe is iGPT-S
