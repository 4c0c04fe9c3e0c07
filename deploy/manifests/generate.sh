#!/usr/bin/env bash
# Writes the chart as it is with its defaults: generate.sh > xds.yaml. Needs helm, by $HELM or on PATH.
set -euo pipefail
cd "$(dirname "$0")/../helm"
cat << 'HEAD'
# Generated from deploy/helm/xds by deploy/manifests/generate.sh, with the chart's defaults.
apiVersion: v1
kind: Namespace
metadata:
  name: istio-system
HEAD
"${HELM:-helm}" template xds xds --namespace istio-system --kube-version 1.34.0 --no-hooks
