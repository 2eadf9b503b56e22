"""Devices and processes: the mesh and its rules, several processes, the work directory's lock, the settings of the compiler."""

from igpt_jax.distributed.runtime import quieten_tpu

quieten_tpu()  # here, because whatever touches a device imports this package first: a program, a study, a notebook
