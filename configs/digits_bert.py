"""Handwritten digits with the masked-pixel objective: the model of configs/digits.py without the start vector, 400,448 parameters.

    python -m igpt_jax.quantize --config=configs/digits_bert.py --workdir=runs/digits_bert
    python -m igpt_jax.train --config=configs/digits_bert.py --workdir=runs/digits_bert
    python -m igpt_jax.sample --checkpoint=runs/digits_bert --out=runs/digits_bert/filled.png --fill=2,2,4,4

Hardware: 2 CPU cores, about 2 minutes. Expected: not run.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.model.objective = "bert"
    return config
