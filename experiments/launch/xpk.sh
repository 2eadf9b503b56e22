#!/usr/bin/env bash
# TPU slices on GKE through XPK (github.com/AI-Hypercomputer/xpk, options of 1.16). From the root of a clean checkout, in this order:
#
#   xpk.sh check      does the recipe fit? Compiled for TOPOLOGY, nothing is run (pip install -e '.[aot]')
#   xpk.sh cluster    once: the cluster with its slices, a bucket, and the bucket as a directory of every pod
#   xpk.sh run        this directory as an image, and the run on every pod; more arguments are values of the recipe, also of check
#   xpk.sh log | state | stop | delete
#   xpk.sh worker     what runs in each pod
#
# A preempted or failed pod ends the job, and XPK starts the job again up to --max-restarts times; then, and after `stop`, `run` again. Each start goes on from
# the newest checkpoint. SIGTERM (a preemption, `stop`) saves: the grace period below must be enough for a step and a save; spot nodes cut it to
# less than 30 seconds, and the last config.save_every steps may be lost.
set -eu
cd "$(dirname "$0")/../.."

PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-b}
CLUSTER=${CLUSTER:-igpt}
WORKLOAD=${WORKLOAD:-igpt-xl}
TPU=${TPU:-v5litepod-256}            # as XPK writes it: v4-128, v5p-128, v6e-64
SLICES=${SLICES:-2}                  # several replicate the model: --config.mesh.data
TOPOLOGY=${TOPOLOGY:-v5e-256x2}      # TPU and SLICES as igpt_jax.aot writes them
CAPACITY=${CAPACITY:---spot}         # or --on-demand, or --reservation=NAME
BUCKET=${BUCKET:-my-bucket}
IMAGE=${IMAGE:-python:3.12}          # the pods install '.[tpu]' at each start, unless the image has it
RECIPE=${RECIPE:-configs/xl.py}
WORKDIR=${WORKDIR:-/gcs/runs/xl}     # gs://BUCKET/runs/xl
PYTHON=${PYTHON:-python}
VALUES=(--config.mesh.data="$SLICES" --config.mesh.tensor=4 --config.batch_size=128)  # of the recipe, for these slices
PLACE=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
action=${1:-}
if [ $# -gt 0 ]; then shift; fi

case "$action" in
  check) "$PYTHON" -m igpt_jax.aot --config="$RECIPE" --topology="$TOPOLOGY" "${VALUES[@]}" "$@" ;;
  cluster)
    xpk cluster create "${PLACE[@]}" --tpu-type="$TPU" --num-slices="$SLICES" "$CAPACITY" --enable-gcsfuse-csi-driver
    # a checkpoint is renamed when it is whole, which is one step only in a bucket with a hierarchical namespace
    gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="${ZONE%-*}" --uniform-bucket-level-access --enable-hierarchical-namespace
    # nothing is cached, so that a pod sees at once what another has written
    xpk storage attach runs "${PLACE[@]}" --type=gcsfuse --bucket="$BUCKET" --size=10000 --mount-point=/gcs --readonly=false --auto-mount=true \
      --no-prefetch-metadata --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0 ;;
  run)
    # exec: XPK hands SIGTERM to its direct child alone
    xpk workload create "${PLACE[@]}" --workload="$WORKLOAD" --tpu-type="$TPU" --num-slices="$SLICES" --base-docker-image="$IMAGE" --script-dir=. \
      --max-restarts=100 --termination-grace-period-seconds=600 \
      --command="RECIPE=$RECIPE WORKDIR=$WORKDIR exec bash experiments/launch/xpk.sh worker$(printf ' %q' "${VALUES[@]}" "$@")" ;;
  worker)
    "$PYTHON" -c 'import grain, igpt_jax, optax' 2>/dev/null || "$PYTHON" -m pip install --quiet -e '.[tpu]'
    "$PYTHON" -m igpt_jax.quantize --config="$RECIPE" --workdir="$WORKDIR" "$@"  # keeps a palette that is there
    "$PYTHON" -m igpt_jax.train --config="$RECIPE" --workdir="$WORKDIR" "$@" &
    trap 'kill -TERM $! 2>/dev/null || true' TERM
    while ! wait $!; do kill -0 $! 2>/dev/null || { wait $!; break; }; done  # a signal ends `wait` too; set -e ends this with the status of a failed run
    # Saved but not finished is 0 to the program; to Kubernetes that pod would be done for ever. XPK restarts on 42 and 127-255, an error (1) it does not.
    if [ ! -f "$WORKDIR/result.json" ]; then exit 42; fi ;;
  log) kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$WORKLOAD,batch.kubernetes.io/job-completion-index=0" --follow --prefix ;;  # kept in Cloud Logging
  state) xpk workload list "${PLACE[@]}" --filter-by-job="$WORKLOAD" ;;
  stop) xpk workload delete "${PLACE[@]}" --workload="$WORKLOAD" ;;
  delete) xpk cluster delete "${PLACE[@]}" ;;  # the slices; the bucket stays
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "experiments/launch/${0##*/}"; exit 2 ;;
esac
