{{/* What KEDA and a plain HorizontalPodAutoscaler have in common, and KEDA's triggers. */}}

{{- define "transload.behavior" -}}
scaleDown:
  # As long as nearly all messages take, and one pod at a time: what the queue has left is then no reason to stop a busy one.
  stabilizationWindowSeconds: {{ include "transload.stabilization" . }}
  selectPolicy: Max
  policies:
    - type: Pods
      value: 1
      periodSeconds: 60
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - type: Pods
      value: {{ .Values.autoscaling.scaleUpPodsPerMinute }}
      periodSeconds: 60
{{- end -}}

{{- define "transload.triggers" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $queue := .Values.config.queue -}}
{{- if eq $queue.type "sqs" -}}
- type: aws-sqs-queue
  name: queue
  # Without it every look of the HPA is a call of SQS.
  useCachedMetrics: true
  metadata:
    queueURL: {{ $queue.queue_url | quote }}
    awsRegion: {{ $queue.region | quote }}
    {{- with $queue.endpoint_url }}
    awsEndpoint: {{ . | quote }}
    {{- end }}
    queueLength: {{ include "transload.queueLength" . | quote }}
    # Messages in work count, or a pod would go while it works on the last ones.
    scaleOnInFlight: "true"
  authenticationRef:
    {{- if eq $scaling.authentication.type "existing" }}
    name: {{ $scaling.authentication.existingName }}
    kind: {{ $scaling.authentication.existingKind }}
    {{- else }}
    name: {{ include "transload.part" (list . "queue") }}
    {{- end }}
{{- else -}}
- type: rabbitmq
  name: queue
  useCachedMetrics: true
  metadata:
    # Over AMQP a message in work is not counted.
    protocol: http
    queueName: {{ $queue.queue | quote }}
    {{- with $scaling.rabbitmq.vhostName }}
    vhostName: {{ . | quote }}
    {{- end }}
    mode: QueueLength
    value: {{ include "transload.queueLength" . | quote }}
    excludeUnacknowledged: "false"
  authenticationRef:
    name: {{ include "transload.part" (list . "queue") }}
{{- end }}
{{- if $scaling.outbox.enabled }}
- type: postgresql
  name: outbox
  useCachedMetrics: true
  metadata:
    query: SELECT count(*) FROM outbox WHERE state = 'pending'
    targetQueryValue: {{ $scaling.outbox.targetPending | quote }}
    # One completion is enough to keep a pod.
    activationTargetQueryValue: "0"
  authenticationRef:
    name: {{ include "transload.part" (list . "outbox") }}
{{- end }}
{{- if $scaling.prometheus.enabled }}
- type: prometheus
  name: prometheus
  useCachedMetrics: true
  metadata:
    serverAddress: {{ $scaling.prometheus.serverAddress | quote }}
    query: {{ $scaling.prometheus.query | quote }}
    threshold: {{ $scaling.prometheus.threshold | quote }}
    # No answer is an error, and the fallback's matter; it is not nought.
    ignoreNullValues: "false"
  {{- with $scaling.prometheus.existingAuthentication }}
  authenticationRef:
    name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}
