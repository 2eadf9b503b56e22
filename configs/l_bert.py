"""iGPT-L with the BERT objective on ImageNet at 32 x 32: 1,362,249,216 parameters (paper 2.1, table 5).

    python -m igpt_jax.quantize --config=configs/l_bert.py --workdir=runs/l_bert
    python -m igpt_jax.train --config=configs/l_bert.py --workdir=runs/l_bert

The model has the parameters of configs/l.py except the start vector, and its run costs the same number of FLOP.
Hardware: not run. Expected: no loss was published.
"""

from configs import l


def get_config():
    config = l.get_config()
    config.model.objective = "bert"
    config.optim.learning_rate = 0.001  # table 5
    return config
