{{/* Name of what is namespaced: the release's, joined with the chart's unless it says so already. 52 characters leave room for endings. */}}
{{- define "operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{/* Name of what is not: two releases of one name in two namespaces must not meet. */}}
{{- define "operator.clusterName" -}}
{{ .Release.Namespace }}:{{ include "operator.fullname" . }}
{{- end }}

{{- define "operator.serviceAccount" -}}
{{ default (include "operator.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "operator.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "operator.labels" -}}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: protocol-gateway
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* (chart, image): repository@digest, or repository:tag. */}}
{{- define "operator.image" -}}
{{- $image := .image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{/* Rights to look after the ProtocolGateways of a namespace. What the operator makes in it, it may change and remove;
     what it only looks at, it may not. To give an object that lost its owner to a ProtocolGateway again, `delete` is asked
     for as well, where the API server has OwnerReferencesPermissionEnforcement. */}}
{{- define "operator.fleetRules" -}}
- apiGroups: [protocolgateway.io]
  resources: [protocolgateways]
  verbs: [list, watch]
- apiGroups: [protocolgateway.io]
  resources: [protocolgateways/status]
  verbs: [patch]
# where this operator does not serve custom.metrics.k8s.io, it is the autoscaler
- apiGroups: [protocolgateway.io]
  resources: [protocolgateways/scale]
  verbs: [patch]
# Secrets that a ProtocolGateway names are read, those with the certificates of its fleet are made
- apiGroups: [""]
  resources: [configmaps, secrets, services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
{{- if .Values.metricsApi.enabled }}
  verbs: [get, list, watch, create, patch, delete]
{{- else }}
  # those of users are seen, and its own of the time when it served the metrics are taken away
  verbs: [list, watch, delete]
{{- end }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# patch: what the deletion of a pod costs
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# where the cluster knows them
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
