#!/usr/bin/env bash
# One machine with or without GPUs: one process uses all its devices.
#
#   experiments/launch/one_machine.sh check   first: does the recipe fit? Compiles for TOPOLOGY's devices and runs nothing (pip install -e '.[aot]')
#   experiments/launch/one_machine.sh         the palette, if it is missing, and training; more arguments set values of the recipe (--config.batch_size=64)
#   PROCESSES=2 DEVICES=4 experiments/launch/one_machine.sh    several processes on the CPU, as on a pod: two processes with four devices each
#
# The same command continues from the newest checkpoint. SIGTERM or SIGUSR1 to this script (`kill PID`) saves and ends with exit code 0.
# Ctrl-C and SIGKILL do not save; they lose at most config.save_every steps.
set -eu
cd "$(dirname "$0")/../.."

RECIPE=${RECIPE:-configs/cifar10.py}
WORKDIR=${WORKDIR:-runs/cifar10}
TOPOLOGY=${TOPOLOGY:-h100-1}  # for check: h100-8, v5e-4, ...
PYTHON=${PYTHON:-python}
PROCESSES=${PROCESSES:-1}     # more than one: on the CPU, also if the machine has GPUs
DEVICES=${DEVICES:-1}         # of each process, if there are several
PORT=${PORT:-12355}           # of the first process, if there are several

if [ "${1:-}" = check ]; then
  exec "$PYTHON" -m igpt_jax.aot --config="$RECIPE" --topology="$TOPOLOGY" "${@:2}"
fi

"$PYTHON" -m igpt_jax.quantize --config="$RECIPE" --workdir="$WORKDIR" "$@"  # keeps an existing palette

if [ "$PROCESSES" = 1 ]; then
  # exec: signals to this script reach the run
  exec "$PYTHON" -m igpt_jax.train --config="$RECIPE" --workdir="$WORKDIR" "$@"
fi

export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT JAX_NUM_PROCESSES=$PROCESSES
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"  # from jax's documentation: how to try a mesh on the CPU
running=()
trap 'kill -TERM "${running[@]}" 2>/dev/null || true' TERM USR1
for ((index = 0; index < PROCESSES; index++)); do
  JAX_PROCESS_ID=$index "$PYTHON" -m igpt_jax.train --config="$RECIPE" --workdir="$WORKDIR" "$@" &
  running+=($!)
done

failed=0
for process in "${running[@]}"; do
  # a signal ends `wait` too: wait again if the process still runs. If one process dies, jax ends the others.
  until wait "$process"; do
    kill -0 "$process" 2>/dev/null && continue
    wait "$process" || failed=$?
    break
  done
done
exit "$failed"
