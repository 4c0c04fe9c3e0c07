{{/* Names are Istio's: istiod, or istiod-<revision>. */}}
{{- define "xds.suffix" -}}
{{- if ne .Values.revision "default" }}-{{ .Values.revision }}{{ end -}}
{{- end -}}
{{- define "xds.name" -}}
istiod{{ include "xds.suffix" . }}
{{- end -}}
{{- define "xds.selector" -}}
app: istiod
istio.io/rev: {{ .Values.revision | quote }}
{{- end -}}
{{- define "xds.labels" -}}
{{ include "xds.selector" . }}
app.kubernetes.io/name: xds
app.kubernetes.io/part-of: xds
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
{{- define "xds.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- define "xds.proxyImage" -}}
{{ .Values.proxyImage.repository }}:{{ .Values.proxyImage.tag | default .Chart.AppVersion }}
{{- end -}}
{{- define "xds.cniImage" -}}
{{ .Values.cni.image.repository }}:{{ .Values.cni.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- define "xds.cniLabels" -}}
app: xds-cni
app.kubernetes.io/name: xds-cni
app.kubernetes.io/part-of: xds
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
{{- define "xds.discoveryAddress" -}}
{{ include "xds.name" . }}.{{ .Release.Namespace }}.svc:15010
{{- end -}}
{{- define "xds.settings" -}}
image: {{ include "xds.proxyImage" . | quote }}
imagePullPolicy: {{ .Values.proxyImage.pullPolicy | quote }}
imagePullSecrets: {{ toJson .Values.imagePullSecrets }}
revision: {{ .Values.revision | quote }}
native: {{ .Values.injection.native | toJson }}
cni: {{ .Values.injection.cni }}
discoveryAddress: {{ include "xds.discoveryAddress" . | quote }}
clusterDomain: {{ .Values.injection.clusterDomain | quote }}
clusterId: {{ .Values.injection.clusterId | quote }}
network: {{ .Values.injection.network | quote }}
logLevel: {{ .Values.injection.logLevel | quote }}
resources: {{ toJson .Values.injection.resources }}
includeIpRanges: {{ .Values.injection.includeIPRanges | quote }}
excludeIpRanges: {{ .Values.injection.excludeIPRanges | quote }}
includeInboundPorts: {{ .Values.injection.includeInboundPorts | quote }}
excludeInboundPorts: {{ .Values.injection.excludeInboundPorts | quote }}
includeOutboundPorts: {{ .Values.injection.includeOutboundPorts | quote }}
excludeOutboundPorts: {{ .Values.injection.excludeOutboundPorts | quote }}
templates: {{ toJson .Values.injection.templates }}
defaultTemplates: {{ toJson .Values.injection.defaultTemplates }}
{{- end -}}
{{/* One webhook: which namespaces and which of their pods it is asked about. */}}
{{- define "xds.webhook" -}}
- name: {{ .name }}.sidecar-injector.istio.io
  admissionReviewVersions: [v1]
  clientConfig:
    service:
      name: {{ include "xds.name" .root }}
      namespace: {{ .root.Release.Namespace }}
      path: /inject
      port: 443
  failurePolicy: {{ .root.Values.injection.failurePolicy }}
  timeoutSeconds: {{ .root.Values.injection.timeoutSeconds }}
  reinvocationPolicy: Never
  sideEffects: None
  rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
  namespaceSelector:
    matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, kube-public, kube-node-lease, {{ .root.Release.Namespace }}]}
    {{- .namespaces | nindent 4 }}
  objectSelector:
    matchExpressions:
    {{- .pods | nindent 4 }}
{{- end -}}
