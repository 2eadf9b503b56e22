#!/usr/bin/env bash
# A TPU pod slice, or several, as a queued resource of Google Cloud. From the repository's root, in this order:
#
#   tpu_pod.sh check     does the recipe fit? Compiled for TOPOLOGY, nothing is run (pip install -e '.[aot]')
#   tpu_pod.sh bucket    once: a bucket for code and runs
#   tpu_pod.sh create    ask for the TPUs; `state` says ACTIVE when they are there
#   tpu_pod.sh install   bucket, code (HEAD) and environment on every worker; again after each change of the code
#   tpu_pod.sh run       palette and training on every worker; more arguments are values of the recipe, also of check (--config.batch_size=128)
#   tpu_pod.sh state | log | logs | stop | delete
#
# `run` again goes on from the newest checkpoint. `stop`, and a preemption of spot TPUs, are a SIGTERM: the run saves, where the time is enough (after a
# preemption about 30 seconds; else the last config.save_every steps are lost). A preempted resource does not come back: delete, create, install, run.
# A worker that crashes takes the others with it, and systemd starts all of them again; an error of the recipe (exit 1) is not tried again.
set -eu
cd "$(dirname "$0")/../.."

PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-central2-b}
NAME=${NAME:-igpt}
ACCELERATOR=${ACCELERATOR:-v4-128}           # as the cloud writes it: v5litepod-256, v5p-128, v6e-64
TOPOLOGY=${TOPOLOGY:-v4-128}                 # the same as igpt_jax.aot writes it: v5e-256, v5p-128, v6e-64; two slices: v5e-256x2
RUNTIME=${RUNTIME:-tpu-ubuntu2204-base}      # v5e: v2-alpha-tpuv5-lite, v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SLICES=${SLICES:-1}                          # several replicate the model: --config.mesh.data=SLICES
CAPACITY=${CAPACITY:---spot}                 # or --reserved, or --guaranteed
BUCKET=${BUCKET:-my-bucket}
RECIPE=${RECIPE:-configs/xl.py}
WORKDIR=${WORKDIR:-/gcs/runs/xl}             # gs://BUCKET/runs/xl, which every worker sees as a directory
PYTHON=${PYTHON:-python}
GCSFUSE=${GCSFUSE:-3.11.1}
PLACE=(--project="$PROJECT" --zone="$ZONE")

on() {  # on WORKERS COMMAND: run it on these workers of every slice (`ssh-add ~/.ssh/google_compute_engine` first)
  gcloud compute tpus queued-resources ssh "$NAME" "${PLACE[@]}" --node=all --worker="$1" --command="$2"
}

# No file is kept by the mount, so that a worker sees at once what another has written.
MOUNT="mountpoint -q /gcs || sudo gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 -o allow_other --uid=\$(id -u) $BUCKET /gcs"
PROGRAM=".venv/bin/python -m"
overrides() { if [ $# -gt 0 ]; then printf ' %q' "$@"; fi; }

case "${1:-}" in
  check) "$PYTHON" -m igpt_jax.aot --config="$RECIPE" --topology="$TOPOLOGY" "${@:2}" ;;
  # a checkpoint is renamed when it is whole, which is one step only in a bucket with a hierarchical namespace
  bucket) gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="${ZONE%-*}" --uniform-bucket-level-access --enable-hierarchical-namespace ;;
  create)
    if [ "$SLICES" = 1 ]; then nodes=(--node-id="$NAME"); else nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" "${nodes[@]}" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "$CAPACITY" ;;
  state) gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format="value(state.state)" ;;
  install)
    git archive --format=tar.gz HEAD | gcloud storage cp - "gs://$BUCKET/igpt_jax.tar.gz"
    on all "set -e; deb=gcsfuse_${GCSFUSE}_amd64.deb
      command -v gcsfuse || { cd /tmp; curl -fsSLO https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE/\$deb; sudo apt-get install -y ./\$deb; }
      sudo mkdir -p /gcs; $MOUNT
      rm -rf ~/igpt_jax; mkdir ~/igpt_jax; cd ~/igpt_jax; tar xzf /gcs/igpt_jax.tar.gz
      pip install --quiet --user uv; ~/.local/bin/uv venv --quiet --python 3.12 .venv; ~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu]'" ;;
  run)  # a service: it outlives the connection, is told of a shutdown by SIGTERM, and has ten minutes to save
    more=$(overrides "${@:2}")
    on all "set -e; $MOUNT; cd ~/igpt_jax
      sudo systemd-run --unit=igpt --collect --uid=\$(id -u) --working-directory=\$HOME/igpt_jax -p KillMode=mixed -p TimeoutStopSec=600 -p Restart=on-abnormal -p RestartSec=20 \
        sh -c '$PROGRAM igpt_jax.quantize --config=$RECIPE --workdir=$WORKDIR$more && exec $PROGRAM igpt_jax.train --config=$RECIPE --workdir=$WORKDIR$more'" ;;
  log) gcloud compute tpus queued-resources ssh "$NAME" "${PLACE[@]}" --command="sudo journalctl --unit=igpt --lines=50 --follow" ;;
  logs) on all "sudo journalctl --unit=igpt --no-pager > /gcs/logs-\$(hostname).txt"; gcloud storage cp "gs://$BUCKET/logs-*.txt" . ;;
  stop) on all "sudo systemctl stop igpt" ;;
  delete) gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force ;;  # the TPUs; the bucket stays
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "experiments/launch/${0##*/}"; exit 2 ;;
esac
