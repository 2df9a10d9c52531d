{{/* Names end with what tells them apart, so it is the beginning that is cut to the 63 characters of a label. */}}

{{- define "transload.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "transload.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "transload.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- include "transload.named" (dict "base" .Release.Name "suffix" (include "transload.name" .)) -}}
{{- end -}}
{{- end -}}

{{/* `base` cut so that `-suffix` fits behind it. */}}
{{- define "transload.named" -}}
{{- $room := sub 62 (len .suffix) | int -}}
{{- if lt $room 1 -}}
{{- trunc 63 .suffix | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (trunc $room .base | trimSuffix "-") .suffix -}}
{{- end -}}
{{- end -}}

{{/* The name of one of this release's objects: a list of the root and the suffix. */}}
{{- define "transload.part" -}}
{{- include "transload.named" (dict "base" (include "transload.fullname" (first .)) "suffix" (last .)) -}}
{{- end -}}

{{- define "transload.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "transload.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "transload.selector" -}}
app.kubernetes.io/name: {{ include "transload.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What a worker's pod is known by: the pod of the migration has another component. */}}
{{- define "transload.workerSelector" -}}
{{ include "transload.selector" . }}
app.kubernetes.io/component: worker
{{- end -}}

{{- define "transload.labels" -}}
{{ include "transload.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "transload.named" (dict "base" .Chart.Name "suffix" (replace "+" "_" .Chart.Version)) }}
{{- end -}}

{{/* The job label under which Prometheus has what the PodMonitor scrapes. */}}
{{- define "transload.job" -}}
{{- printf "%s/%s" .Release.Namespace (include "transload.fullname" .) -}}
{{- end -}}
