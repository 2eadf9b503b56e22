from igpt_jax.distributed.runtime import quieten_tpu

quieten_tpu()  # here, because whatever touches a device imports this package first: a program, a study, a notebook
