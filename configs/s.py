"""iGPT-S on ImageNet at 32 x 32: 76,571,648 parameters (paper 3.3, table 5).

    python -m igpt_jax.quantize --config=configs/s.py --workdir=runs/s
    python -m igpt_jax.train --config=configs/s.py --workdir=runs/s

Hardware: not run. By arithmetic 6.95e19 FLOP, 2 days of one H100 at 40 % of its bf16 peak.
Expected: 2.0895 nats per pixel with OpenAI's palette (theirs; not run here).
"""

from configs import base


def get_config():
    return base.get_config()  # the base recipe is iGPT-S
