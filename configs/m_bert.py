"""iGPT-M with the BERT objective on ImageNet at 32 x 32: 455,156,736 parameters (paper 2.1, table 5).

    python -m igpt_jax.quantize --config=configs/m_bert.py --workdir=runs/m_bert
    python -m igpt_jax.train --config=configs/m_bert.py --workdir=runs/m_bert

The model has the parameters of configs/m.py except the start vector, and its run costs the same number of FLOP.
Hardware: not run. Expected: no loss was published.
"""

from configs import m


def get_config():
    config = m.get_config()
    config.model.objective = "bert"
    config.optim.learning_rate = 0.003  # table 5
    return config
