#!/usr/bin/env bash
# One or several TPU pod slices as a queued resource of Google Cloud. From the repository's root, in this order:
#
#   tpu_pod.sh check     does the recipe fit? Compiles for TOPOLOGY and runs nothing (pip install -e '.[aot]')
#   tpu_pod.sh bucket    once: a bucket for code and runs
#   tpu_pod.sh create    request the TPUs; `state` shows ACTIVE when they are ready
#   tpu_pod.sh install   bucket, code (HEAD) and environment on every worker; repeat it after each change of the code
#   tpu_pod.sh run       palette and training on every worker; more arguments set values of the recipe, also for check (--config.batch_size=128)
#   tpu_pod.sh state | log | logs | stop | delete
#
# A second `run` continues from the newest checkpoint. `stop` and a preemption of spot TPUs send SIGTERM: the run saves if the time is enough. After a
# preemption it has about 30 seconds; otherwise at most config.save_every steps are lost. A preempted resource does not return: delete, create, install, run.
# If a worker crashes, the others end too, and systemd starts all of them again. An error of the recipe (exit code 1) is not tried again.
set -eu
cd "$(dirname "$0")/../.."

PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-central2-b}
NAME=${NAME:-igpt}
ACCELERATOR=${ACCELERATOR:-v4-128}           # in the spelling of Google Cloud: v5litepod-256, v5p-128, v6e-64
TOPOLOGY=${TOPOLOGY:-v4-128}                 # the same in the spelling of igpt_jax.aot: v5e-256, v5p-128, v6e-64; two slices: v5e-256x2
RUNTIME=${RUNTIME:-tpu-ubuntu2204-base}      # v5e: v2-alpha-tpuv5-lite, v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SLICES=${SLICES:-1}                          # with several, replicate the model: --config.mesh.data=SLICES
CAPACITY=${CAPACITY:---spot}                 # or --reserved, or --guaranteed
BUCKET=${BUCKET:-my-bucket}
RECIPE=${RECIPE:-configs/xl.py}
WORKDIR=${WORKDIR:-/gcs/runs/xl}             # gs://BUCKET/runs/xl, which every worker mounts
PYTHON=${PYTHON:-python}
GCSFUSE=${GCSFUSE:-3.11.1}
PLACE=(--project="$PROJECT" --zone="$ZONE")

on() {  # on WORKERS COMMAND: run a command on these workers of every slice (`ssh-add ~/.ssh/google_compute_engine` first)
  gcloud compute tpus queued-resources ssh "$NAME" "${PLACE[@]}" --node=all --worker="$1" --command="$2"
}

# The mount caches nothing, so that a worker sees at once what another has written.
MOUNT="mountpoint -q /gcs || sudo gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 -o allow_other --uid=\$(id -u) $BUCKET /gcs"
PROGRAM=".venv/bin/python -m"
overrides() { if [ $# -gt 0 ]; then printf ' %q' "$@"; fi; }

case "${1:-}" in
  check) "$PYTHON" -m igpt_jax.aot --config="$RECIPE" --topology="$TOPOLOGY" "${@:2}" ;;
  # a complete checkpoint is renamed; only in a bucket with a hierarchical namespace is this one operation
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
  run)  # a service: it survives the connection, gets SIGTERM at a shutdown, and has ten minutes to save
    more=$(overrides "${@:2}")
    on all "set -e; $MOUNT; cd ~/igpt_jax
      sudo systemd-run --unit=igpt --collect --uid=\$(id -u) --working-directory=\$HOME/igpt_jax -p KillMode=mixed -p TimeoutStopSec=600 -p Restart=on-abnormal -p RestartSec=20 \
        sh -c '$PROGRAM igpt_jax.quantize --config=$RECIPE --workdir=$WORKDIR$more && exec $PROGRAM igpt_jax.train --config=$RECIPE --workdir=$WORKDIR$more'" ;;
  log) gcloud compute tpus queued-resources ssh "$NAME" "${PLACE[@]}" --command="sudo journalctl --unit=igpt --lines=50 --follow" ;;
  logs) on all "sudo journalctl --unit=igpt --no-pager > /gcs/logs-\$(hostname).txt"; gcloud storage cp "gs://$BUCKET/logs-*.txt" . ;;
  stop) on all "sudo systemctl stop igpt" ;;
  delete) gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force ;;  # deletes the TPUs, not the bucket
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "experiments/launch/${0##*/}"; exit 2 ;;
esac
