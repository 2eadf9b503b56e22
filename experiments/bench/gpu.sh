#!/usr/bin/env bash
# The benchmarks on one GPU in ten minutes: bash experiments/bench/gpu.sh
#
# Needs jax for CUDA, flax, optax, orbax-checkpoint, torch for CUDA, transformers and this repository; not grain, TFDS, ml_collections, scikit-learn, absl.
# PYTHON is the Python that has them, OUT where the JSON goes (default: experiments/results). What matters most comes first; when MINUTES are over the
# rest is left out. A benchmark that fails is named at the end, and the others still run.
set -eu
cd "$(dirname "$0")/../.."
out=${OUT:-experiments/results} python=${PYTHON:-python3} end=$((${MINUTES:-10} * 60 - 15)) failed=""
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

bench() { # bench FILE PROGRAM OPTIONS...
  local name=$1 program=$2 left=$((end - SECONDS))
  shift 2
  if [ "$left" -lt 20 ]; then
    failed="$failed $name(no time)"
    return
  fi
  echo "== $name: $program $*, $left s left"
  timeout -k 5 "$left" "$python" -m "experiments.bench.$program" "$@" --out="$out/bench_$name.json" || failed="$failed $name"
}

# MFU of ours alone, with all of the memory, then beside PyTorch, with half of it each
bench train_l train --model=l --batch=largest --steps=4 --rounds=3 --programs ours
bench train_s train --model=s --batch=largest --steps=5 --rounds=3
bench train_m train --model=m --batch=largest --steps=4 --rounds=3 --programs ours torch-compiled
bench train_l_64 train --model=l --positions=4096 --batch=largest --steps=2 --rounds=3 --programs ours
bench features features --model=s
bench sample sample --model=s --batch=64 --rounds=2
bench scaling scaling --steps=2 --rounds=2 --axes='{"positions": [256, 1024, 4096], "batch": [2, 8, 32]}'

[ -z "$failed" ] || { echo "error: not done:$failed"; exit 1; }
