#!/usr/bin/env bash
# One GPU, ten minutes: STAGE=smoke|bench|science|all bash experiments/bench/gpu.sh
#
#   smoke     the tests for GPUs; a few steps of S, M and L; one batch of samples: three minutes that show what fails
#   bench     training beside compiled PyTorch, its kernels, sampling beside Hugging Face's generate, L at 64 x 64, features, probes, k-means
#   science   CIFAR-10 at 32 x 32 with 512 colours, 12 layers of width 512, STEPS steps; then features, probes of all layers, completions
#
# Needs jax for CUDA, flax, optax, orbax-checkpoint, torch for CUDA and transformers. k-means in the stage bench and the stage science need DATA, a folder with
# cifar10.py and its images (default: ../shared/data), and Pillow; science also scikit-learn, matplotlib and ml_collections. Grain and TFDS are not needed.
# PYTHON is the Python to use, and OUT the folder of the results (default: experiments/results/gpu, with SMALL runs/rehearsal). The most important programs
# come first, and each writes its result when it ends. MINUTES (default 10) is the time of all, and LIMIT (seconds, default 240) that of one program but for
# the training of science, whole numbers. If one fails or takes longer, the others still run, and its name and the reason are printed at the end. COMMIT names
# the commit if there is no git. SMALL=1 rehearses all of it on any machine in minutes: tiny sizes, numbers without a meaning.
set -eu
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-/tmp/igpt_jax-compiled} # programs of one stage are found again in the next
small=${SMALL:+--small}
cd "$(dirname "$0")/../.."
minutes=${MINUTES:-10} limit=${LIMIT:-240}
if ! [[ $minutes =~ ^[0-9]+$ && $limit =~ ^[1-9][0-9]*$ ]]; then
  echo "error: MINUTES=$minutes and LIMIT=$limit must be whole numbers, LIMIT above 0"
  exit 1
fi
stage=${STAGE:-all} out=${OUT:-${SMALL:+runs/rehearsal}} python=${PYTHON:-python3} end=$((10#$minutes * 60 - 15)) failed=""
out=${out:-experiments/results/gpu} images=${WORK:-runs/gpu}/data
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -z "$small" ] && ! timeout -k 5 90 "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")'; then
  echo "error: jax finds no GPU here, and its results would replace those of one: SMALL=1 rehearses without"
  exit 1
fi
mkdir -p "$out"

attempt() { # attempt NAME COMMAND...
  local name=$1 left=$((end - SECONDS)) code=0 began=$SECONDS
  shift
  if [ "$left" -lt 20 ]; then
    failed="$failed $name (no time left)"
    return
  fi
  echo "== $name: $*, $left s left"
  [ "$left" -lt "$limit" ] || left=$limit
  timeout -k 5 "$left" "$python" "$@" || code=$?
  if [ "$code" != 0 ] && [ $((SECONDS - began)) -ge "$left" ]; then
    failed="$failed $name (took longer than $left s)"
  elif [ "$code" != 0 ]; then
    failed="$failed $name (exit code $code)"
  fi
}

bench() { # bench FILE PROGRAM OPTIONS...; with SMALL without the options that are sizes
  local name=$1 program=$2 option options=()
  shift 2
  for option in "$@"; do
    case $small$option in --small--model=* | --small--batch=* | --small--positions=* | --small--steps=*) ;; *) options+=("$option") ;; esac
  done
  attempt "$name" -m "experiments.bench.$program" "${options[@]}" ${small:+"$small"} "--out=$out/bench_$name.json"
}

cifar() { # the images, once
  [ -f "$images/train.npz" ] || attempt images "${DATA:-../shared/data}/cifar10.py" "$images"
}

smoke() {
  JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} attempt tests -m pytest -q -n 0 -p no:cacheprovider tests/test_gpu.py
  bench smoke_s train --model=s --batch=96 --steps=5 --rounds=2 --programs ours
  bench smoke_sample sample --model=s --batch=64 --rounds=1 --programs ours
  bench smoke_m train --model=m --batch=32 --steps=2 --rounds=1 --programs ours
  bench smoke_l train --model=l --batch=16 --steps=2 --rounds=1 --programs ours
}

benchmarks() {
  local means=(ours ours-early)
  bench train_l train --model=l --batch=16 --steps=4 --rounds=2 --programs ours
  bench train_s_torch train --model=s --batch=96 --steps=5 --rounds=3 --programs ours torch-compiled
  bench kernels_s kernels --model=s --batch=96
  bench train_m train --model=m --batch=32 --steps=4 --rounds=2 --programs ours
  bench sample_m sample --model=m --batch=64 --rounds=2 --programs ours
  bench sample_s_hf sample --model=s --batch=64 --rounds=1
  bench probe probe --rounds=1
  bench kernels_sample kernels --model=s --batch=64 --what=sample --positions=64
  bench features features --model=s
  bench train_l_32 train --model=l --batch=32 --steps=3 --rounds=2 --programs ours # a GPU of 80 GB takes what fits
  bench train_l_64 train --model=l --positions=4096 --batch=4 --steps=2 --rounds=3 --programs ours
  [ -n "$small" ] || cifar
  if timeout -k 5 60 "$python" -c 'import faiss' 2>/dev/null; then means+=(faiss); fi
  bench palette palette "--images=$images" --rounds=2 --programs "${means[@]}"
}

science() {
  local work=${WORK:-runs/gpu}
  local recipe=(--config=configs/cifar10.py "--config.data.source=npz:$images" "--workdir=$work")
  local model=(--config.model.width=512 --config.batch_size=64 "--config.steps=${STEPS:-4200}" "--config.optim.warmup_steps=$((${STEPS:-4200} / 15))"
    --config.optim.learning_rate=0.001 --config.log_every=50 "--config.eval_every=$((${STEPS:-4200} / 6))" --config.eval_images=2000 --config.save_every=100000)
  if [ -n "$small" ]; then
    recipe+=(--config.data.image_size=8 --config.palette.size=16)
    model+=(--config.model.width=32 --config.model.layers=2 --config.model.heads=2 --config.model.dtype=float32 --config.eval_images=64)
  fi
  cifar
  attempt palette -m igpt_jax.quantize "${recipe[@]}"
  limit=$end attempt pretraining -m igpt_jax.train "${recipe[@]}" "${model[@]}"
  attempt features -m igpt_jax.features "--checkpoint=$work" "--out=$work/features"
  attempt probes -m igpt_jax.probe "--features=$work/features" "--out=$out"
  attempt completions -m igpt_jax.sample "--checkpoint=$work" "--out=$out/completions.png" --count=10 --completions=5
  attempt samples -m igpt_jax.sample "--checkpoint=$work" "--out=$out/samples.png" --unconditional=64
  for name in metrics.jsonl result.json config.json palette.png; do
    if [ -f "$work/$name" ]; then cp "$work/$name" "$out"; fi
  done
}

case $stage in
  smoke) smoke ;;
  bench) benchmarks ;;
  science) science ;;
  all) smoke && benchmarks && science ;;
  *) echo "error: STAGE=$stage is none of smoke, bench, science, all"; exit 1 ;;
esac
[ -z "$failed" ] || { echo "error: not done:$failed"; exit 1; }
