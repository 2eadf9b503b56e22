"""iGPT-S with the BERT objective on ImageNet at 32 x 32: 76,571,136 parameters (paper 2.1, table 5).

    python -m igpt_jax.quantize --config=configs/s_bert.py --workdir=runs/s_bert
    python -m igpt_jax.train --config=configs/s_bert.py --workdir=runs/s_bert

The model has the parameters of configs/s.py except the start vector, and its run costs the same number of FLOP.
Hardware: not run. Expected: no loss was published.
"""

from configs import s


def get_config():
    config = s.get_config()
    config.model.objective = "bert"
    config.optim.learning_rate = 0.01  # table 5
    return config
