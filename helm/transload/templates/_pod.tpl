{{/* What a worker's pod and the migration's have in common. */}}

{{- define "transload.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository .Values.image.tag -}}
{{- end -}}
{{- end -}}

{{/* Exactly the file that the command reads. */}}
{{- define "transload.configFile" -}}
{{ toYaml .Values.config }}
{{- end -}}

{{- define "transload.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "transload.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "transload.environment" -}}
- name: TRANSLOAD_CONFIG
  value: /etc/transload/transload.yaml
- name: TRANSLOAD_HOME
  value: /scratch/home
- name: TMPDIR
  value: /scratch
{{- range $variable, $from := .Values.secretEnv }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.name }}
      key: {{ $from.key }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "transload.mounts" -}}
- name: config
  mountPath: /etc/transload
  readOnly: true
- name: scratch
  mountPath: /scratch
{{- range $name, $from := .Values.secretFiles }}
- name: {{ include "transload.named" (dict "base" "secret" "suffix" $name) }}
  mountPath: /etc/transload-secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A list of the root and the name of the ConfigMap. */}}
{{- define "transload.volumes" -}}
{{- $root := first . -}}
- name: config
  configMap:
    name: {{ last . }}
- name: scratch
  emptyDir:
    sizeLimit: {{ include "transload.scratch" $root }}
{{- range $name, $from := $root.Values.secretFiles }}
- name: {{ include "transload.named" (dict "base" "secret" "suffix" $name) }}
  secret:
    secretName: {{ $from.name }}
    # The worker refuses keys that others may read; fsGroup makes it 0440.
    defaultMode: 0400
{{- end }}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "transload.resources" -}}
{{- $request := include "transload.memoryRequest" . | int64 -}}
requests:
  memory: {{ $request }}Mi
  cpu: {{ .Values.resources.cpuRequest }}
  {{- with .Values.resources.ephemeralStorageRequest }}
  ephemeral-storage: {{ . }}
  {{- end }}
limits:
  memory: {{ add $request .Values.resources.headroomMemoryMi }}Mi
  {{- with .Values.resources.cpuLimit }}
  cpu: {{ . | quote }}
  {{- end }}
{{- end -}}

{{- define "transload.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "transload.podMetadata" -}}
labels:
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "transload.labels" . | nindent 2 }}
  app.kubernetes.io/component: worker
annotations:
  # A changed file is a new pod.
  checksum/config: {{ include "transload.configFile" . | sha256sum }}
  {{- $annotations := .Values.podAnnotations }}
  {{- if eq .Values.workload "scaledjob" }}
  {{- /* Work of hours is not begun anew because a node would be cheaper. */}}
  {{- $annotations = merge (dict) .Values.podAnnotations (dict "cluster-autoscaler.kubernetes.io/safe-to-evict" "false" "karpenter.sh/do-not-disrupt" "true") }}
  {{- end }}
  {{- with $annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The pod of a command that does one thing and ends: a list of the root, its name, its service account and its ConfigMap. */}}
{{- define "transload.oncePod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ index . 2 }}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
securityContext:
  {{- include "transload.podSecurity" $root | nindent 2 }}
{{- with (include "transload.placement" $root) }}
{{ . | trim }}
{{- end }}
containers:
  - name: {{ index . 1 }}
    image: {{ include "transload.image" $root | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: [{{ index . 1 }}]
    env:
      {{- include "transload.environment" $root | nindent 6 }}
    resources:
      {{- include "transload.resources" $root | nindent 6 }}
    securityContext:
      {{- include "transload.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      {{- include "transload.mounts" $root | nindent 6 }}
volumes:
  {{- include "transload.volumes" (list $root (index . 3)) | nindent 2 }}
{{- end -}}

{{/* The pod of a worker: a list of the root and its arguments. */}}
{{- define "transload.workerPod" -}}
{{- $root := first . -}}
{{- $arguments := last . -}}
{{- $once := has "--until-empty" $arguments -}}
serviceAccountName: {{ include "transload.serviceAccountName" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "transload.gracePeriod" $root }}
securityContext:
  {{- include "transload.podSecurity" $root | nindent 2 }}
{{- with (include "transload.placement" $root) }}
{{ . | trim }}
{{- end }}
{{- if and $root.Values.topologySpread.enabled (not $once) }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: {{ $root.Values.topologySpread.maxSkew }}
    whenUnsatisfiable: {{ $root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "transload.workerSelector" $root | nindent 8 }}
    # Old and new pods of a rollout are spread apart.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- if $once }}
restartPolicy: Never
{{- end }}
containers:
  - name: worker
    image: {{ include "transload.image" $root | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: {{ toJson $arguments }}
    env:
      - name: TRANSLOAD_ADMIN__HOST
        valueFrom:
          fieldRef:
            fieldPath: status.podIP
      {{- with $root.Values.metrics.existingSecret }}
      - name: TRANSLOAD_ADMIN__TOKEN
        valueFrom:
          secretKeyRef:
            name: {{ . }}
            key: {{ $root.Values.metrics.secretKey }}
      {{- end }}
      {{- include "transload.environment" $root | nindent 6 }}
    ports:
      - name: admin
        containerPort: {{ include "transload.adminPort" $root }}
    # The port opens once queue, ledger and stores have answered.
    startupProbe:
      httpGet: {path: /livez, port: admin}
      periodSeconds: 2
      timeoutSeconds: 3
      failureThreshold: 60
    livenessProbe:
      httpGet: {path: /livez, port: admin}
      periodSeconds: 10
      timeoutSeconds: 3
      failureThreshold: 3
    readinessProbe:
      httpGet: {path: /readyz, port: admin}
      periodSeconds: 5
      timeoutSeconds: 3
      failureThreshold: 3
    resources:
      {{- include "transload.resources" $root | nindent 6 }}
    securityContext:
      {{- include "transload.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      {{- include "transload.mounts" $root | nindent 6 }}
volumes:
  {{- include "transload.volumes" (list $root (include "transload.fullname" $root)) | nindent 2 }}
{{- end -}}
