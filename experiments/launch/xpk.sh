#!/usr/bin/env bash
# TPU slices on GKE with XPK (github.com/AI-Hypercomputer/xpk, options of 1.16). From the root of a clean checkout, in this order:
#
#   xpk.sh check      does the recipe fit? Compiles for TOPOLOGY and runs nothing (pip install -e '.[aot]')
#   xpk.sh cluster    once: the cluster with its slices, a bucket, and the bucket as a directory of every pod
#   xpk.sh run        this directory as an image, and the run on every pod; more arguments set values of the recipe, also for check
#   xpk.sh log | state | stop | delete
#   xpk.sh worker     what runs in each pod
#
# A preempted or failed pod ends the job, and XPK starts it again up to --max-restarts times. After that, and after `stop`, give `run` again. Each start
# continues from the newest checkpoint. SIGTERM (a preemption, `stop`) saves: the grace period below must be enough for a step and a save. Spot nodes have
# less than 30 seconds, so the last config.save_every steps may be lost.
set -eu
cd "$(dirname "$0")/../.."

PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-b}
CLUSTER=${CLUSTER:-igpt}
WORKLOAD=${WORKLOAD:-igpt-xl}
TPU=${TPU:-v5litepod-256}            # in the spelling of XPK: v4-128, v5p-128, v6e-64
SLICES=${SLICES:-2}                  # with several, replicate the model: --config.mesh.data
TOPOLOGY=${TOPOLOGY:-v5e-256x2}      # TPU and SLICES in the spelling of igpt_jax.aot
CAPACITY=${CAPACITY:---spot}         # or --on-demand, or --reservation=NAME
BUCKET=${BUCKET:-my-bucket}
IMAGE=${IMAGE:-python:3.12}          # the pods install '.[tpu]' at each start if the image does not have it
RECIPE=${RECIPE:-configs/xl.py}
WORKDIR=${WORKDIR:-/gcs/runs/xl}     # gs://BUCKET/runs/xl
PYTHON=${PYTHON:-python}
VALUES=(--config.mesh.data="$SLICES" --config.mesh.tensor=4 --config.batch_size=128)  # values of the recipe for these slices
PLACE=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
action=${1:-}
if [ $# -gt 0 ]; then shift; fi

case "$action" in
  check) "$PYTHON" -m igpt_jax.aot --config="$RECIPE" --topology="$TOPOLOGY" "${VALUES[@]}" "$@" ;;
  cluster)
    xpk cluster create "${PLACE[@]}" --tpu-type="$TPU" --num-slices="$SLICES" "$CAPACITY" --enable-gcsfuse-csi-driver
    # a complete checkpoint is renamed; only in a bucket with a hierarchical namespace is this one operation
    gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="${ZONE%-*}" --uniform-bucket-level-access --enable-hierarchical-namespace
    # the mount caches nothing, so that a pod sees at once what another has written
    xpk storage attach runs "${PLACE[@]}" --type=gcsfuse --bucket="$BUCKET" --size=10000 --mount-point=/gcs --readonly=false --auto-mount=true \
      --no-prefetch-metadata --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0 ;;
  run)
    # exec: XPK sends SIGTERM to its direct child only
    xpk workload create "${PLACE[@]}" --workload="$WORKLOAD" --tpu-type="$TPU" --num-slices="$SLICES" --base-docker-image="$IMAGE" --script-dir=. \
      --max-restarts=100 --termination-grace-period-seconds=600 \
      --command="RECIPE=$RECIPE WORKDIR=$WORKDIR exec bash experiments/launch/xpk.sh worker$(printf ' %q' "${VALUES[@]}" "$@")" ;;
  worker)
    "$PYTHON" -c 'import grain, igpt_jax, optax' 2>/dev/null || "$PYTHON" -m pip install --quiet -e '.[tpu]'
    "$PYTHON" -m igpt_jax.quantize --config="$RECIPE" --workdir="$WORKDIR" "$@"  # keeps an existing palette
    "$PYTHON" -m igpt_jax.train --config="$RECIPE" --workdir="$WORKDIR" "$@" &
    trap 'kill -TERM $! 2>/dev/null || true' TERM
    while ! wait $!; do kill -0 $! 2>/dev/null || { wait $!; break; }; done  # a signal ends `wait` too; set -e ends this script with the status of a failed run
    # A run that saved but did not finish ends with 0, and Kubernetes would not start that pod again. XPK restarts on 42 and 127-255, not on an error (1).
    if [ ! -f "$WORKDIR/result.json" ]; then exit 42; fi ;;
  log) kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$WORKLOAD,batch.kubernetes.io/job-completion-index=0" --follow --prefix ;;  # Cloud Logging has them too
  state) xpk workload list "${PLACE[@]}" --filter-by-job="$WORKLOAD" ;;
  stop) xpk workload delete "${PLACE[@]}" --workload="$WORKLOAD" ;;
  delete) xpk cluster delete "${PLACE[@]}" ;;  # deletes the slices, not the bucket
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "experiments/launch/${0##*/}"; exit 2 ;;
esac
