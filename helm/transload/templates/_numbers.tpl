{{/* What follows from the settings file. Defaults are those of docs/configuration.md; a test compares them. */}}

{{- define "transload.concurrency" -}}
{{- $worker := .Values.config.worker | default dict -}}
{{- $worker.concurrency | default 64 | int64 -}}
{{- end -}}

{{- define "transload.adminPort" -}}
{{- $admin := .Values.config.admin | default dict -}}
{{- $admin.port | default 9464 | int64 -}}
{{- end -}}

{{- define "transload.drainTimeout" -}}
{{- $worker := .Values.config.worker | default dict -}}
{{- ternary 25.0 $worker.drain_timeout (kindIs "invalid" $worker.drain_timeout) | float64 | ceil | int64 -}}
{{- end -}}

{{- define "transload.gracePeriod" -}}
{{- $least := add (include "transload.drainTimeout" .) .Values.drainMarginSeconds -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add $least 5 -}}
{{- else -}}
{{- .Values.terminationGracePeriodSeconds | int64 -}}
{{- end -}}
{{- end -}}

{{- define "transload.queueLength" -}}
{{- if kindIs "invalid" .Values.autoscaling.queueLength -}}
{{- include "transload.concurrency" . -}}
{{- else -}}
{{- .Values.autoscaling.queueLength | int64 -}}
{{- end -}}
{{- end -}}

{{- define "transload.stabilization" -}}
{{- if kindIs "invalid" .Values.autoscaling.stabilizationWindowSeconds -}}
{{- .Values.autoscaling.serviceTimeP99Seconds | int64 -}}
{{- else -}}
{{- .Values.autoscaling.stabilizationWindowSeconds | int64 -}}
{{- end -}}
{{- end -}}

{{/* MiB: the process, and what its transfers share, which bounds concurrency x part size x parallel parts. */}}
{{- define "transload.memoryRequest" -}}
{{- $worker := .Values.config.worker | default dict -}}
{{- $transfers := $worker.transfer_memory | default 201326592 | int64 -}}
{{- add .Values.resources.baseMemoryMi (div (add $transfers 1048575) 1048576) -}}
{{- end -}}

{{/* MiB: the largest spool that a route may take for one payload, and as much again as nothing else should take. */}}
{{- define "transload.scratch" -}}
{{- if .Values.scratch.sizeLimit -}}
{{- .Values.scratch.sizeLimit -}}
{{- else -}}
{{- $largest := 0 -}}
{{- range $route := .Values.config.routes | default (dict "default" dict) -}}
{{- $limits := ($route | default dict).limits | default dict -}}
{{- $largest = max $largest ($limits.spool | default 17179869184 | int64) -}}
{{- end -}}
{{- printf "%dMi" (add 1024 (div (add $largest 1048575) 1048576)) -}}
{{- end -}}
{{- end -}}
