{{/* What the values' schema cannot say: every line here ends the rendering with what to do. */}}

{{- define "transload.checks" -}}
{{- $config := .Values.config -}}
{{- $scaling := .Values.autoscaling -}}
{{- include "transload.refuseSecrets" (dict "path" "config" "value" $config) -}}
{{- range .Values.env -}}
{{- include "transload.refuseSecrets" (dict "path" "env" "value" (dict (.name | default "" | lower) (.value | default ""))) -}}
{{- end -}}

{{- if hasKey $config "home" -}}
{{- fail "config.home: the chart puts it on the scratch volume; leave it out" -}}
{{- end -}}
{{- $admin := $config.admin | default dict -}}
{{- if or (hasKey $admin "host") (hasKey $admin "token_env") -}}
{{- fail "config.admin: the chart gives host and token (metrics.existingSecret); leave them out" -}}
{{- end -}}
{{- if eq (toString $admin.enabled) "false" -}}
{{- fail "config.admin.enabled: the probes ask the admin port; leave it true" -}}
{{- end -}}
{{- if and (hasKey $admin "port") (eq (int $admin.port) 0) -}}
{{- fail "config.admin.port: a pod needs a fixed port; give one, or leave it out" -}}
{{- end -}}
{{- $queue := ($config.queue | default dict).type | default "embedded" -}}
{{- if not (has $queue (list "sqs" "rabbitmq")) -}}
{{- fail (printf "config.queue.type: pods cannot share a queue of type %s; use sqs or rabbitmq" $queue) -}}
{{- end -}}
{{- $publisher := ($config.publisher | default dict).type | default "embedded" -}}
{{- if not (has $publisher (list "sqs" "rabbitmq")) -}}
{{- fail (printf "config.publisher.type: what a publisher of type %s keeps in a pod is lost with it; use sqs or rabbitmq" $publisher) -}}
{{- end -}}
{{- $ledger := $config.ledger | default dict -}}
{{- if not (or $ledger.url_env (hasPrefix "postgresql" ($ledger.url | default ""))) -}}
{{- fail "config.ledger: a ledger in a pod is lost with it; name the variable that holds the URL of a PostgreSQL database as url_env, and its Secret under secretEnv" -}}
{{- end -}}

{{- if not (or .Values.image.digest .Values.image.tag) -}}
{{- fail "image.digest: give the digest of the image (sha256:…), so that every pod runs the same bytes" -}}
{{- end -}}

{{- $least := add (include "transload.drainTimeout" .) .Values.drainMarginSeconds -}}
{{- if le (include "transload.gracePeriod" . | int) ($least | int) -}}
{{- fail (printf "terminationGracePeriodSeconds: %s is not above config.worker.drain_timeout and drainMarginSeconds together (%d), so pods would be killed while they give work back; raise it, or leave it out" (include "transload.gracePeriod" .) $least) -}}
{{- end -}}

{{- if and .Values.podMonitor.enabled (not .Values.metrics.existingSecret) -}}
{{- fail "podMonitor.enabled: beyond loopback a worker shows its metrics only to who has the token; put one into a Secret and name it as metrics.existingSecret" -}}
{{- end -}}
{{- if and .Values.prometheusRule.enabled (not (and .Values.prometheusRule.runbookUrl .Values.prometheusRule.dashboardUrl)) -}}
{{- fail "prometheusRule: an alert says where to read on; give runbookUrl and dashboardUrl" -}}
{{- end -}}

{{- if and (eq .Values.workload "scaledjob") (ne $scaling.mode "keda") -}}
{{- fail "workload: only KEDA makes Jobs; set autoscaling.mode to keda, or workload to deployment" -}}
{{- end -}}
{{- if and (eq .Values.workload "scaledjob") (not $scaling.outbox.enabled) -}}
{{- fail "workload: what a killed Job had to announce would wait for the next message; enable autoscaling.outbox" -}}
{{- end -}}
{{- if ne $scaling.mode "none" -}}
{{- include "transload.checkScaling" . -}}
{{- end -}}
{{- end -}}

{{- define "transload.checkScaling" -}}
{{- $config := .Values.config -}}
{{- $scaling := .Values.autoscaling -}}
{{- if gt ($scaling.minReplicas | int) ($scaling.maxReplicas | int) -}}
{{- fail "autoscaling.minReplicas: above maxReplicas; lower it" -}}
{{- end -}}
{{- if lt (include "transload.stabilization" . | int) ($scaling.serviceTimeP99Seconds | int) -}}
{{- fail (printf "autoscaling.stabilizationWindowSeconds: %s is below serviceTimeP99Seconds (%d), so busy pods would be taken away; raise it, or leave it out" (include "transload.stabilization" .) ($scaling.serviceTimeP99Seconds | int)) -}}
{{- end -}}
{{- if and (gt (include "transload.stabilization" . | int) 3600) (eq .Values.workload "deployment") -}}
{{- fail "autoscaling.serviceTimeP99Seconds: Kubernetes looks back for 3600 seconds at most; for longer work use workload scaledjob" -}}
{{- end -}}
{{- if eq $scaling.mode "hpa" -}}
{{- if lt ($scaling.minReplicas | int) 1 -}}
{{- fail "autoscaling.minReplicas: without KEDA nothing starts the first pod; use 1 or more" -}}
{{- end -}}
{{- else -}}
{{- if and (lt ($scaling.minReplicas | int) 1) (not $scaling.outbox.enabled) (eq .Values.workload "deployment") -}}
{{- fail "autoscaling.minReplicas: with no pod, completions would wait for the next message; use 1 or more, or enable autoscaling.outbox" -}}
{{- end -}}
{{- if and (gt (include "transload.queueLength" . | int) (include "transload.concurrency" . | int)) (eq .Values.workload "deployment") -}}
{{- fail (printf "autoscaling.queueLength: %s is above config.worker.concurrency (%s), so busy pods would be taken away while the queue drains; lower it, or leave it out" (include "transload.queueLength" .) (include "transload.concurrency" .)) -}}
{{- end -}}
{{- include "transload.checkTriggers" . -}}
{{- end -}}
{{- end -}}

{{- define "transload.checkTriggers" -}}
{{- $config := .Values.config -}}
{{- $scaling := .Values.autoscaling -}}
{{- $auth := $scaling.authentication -}}
{{- if eq $config.queue.type "sqs" -}}
{{- if not (and $config.queue.queue_url $config.queue.region) -}}
{{- fail "config.queue: KEDA has to know queue_url and region; write both" -}}
{{- end -}}
{{- if and $auth.roleArn $auth.identityOwner -}}
{{- fail "autoscaling.authentication: roleArn names a role, identityOwner whose role it is; keep one of them" -}}
{{- end -}}
{{- if and (eq $auth.type "podIdentity") (eq $auth.identityOwner "workload") .Values.serviceAccount.create (not (index .Values.serviceAccount.annotations "eks.amazonaws.com/role-arn")) -}}
{{- fail "autoscaling.authentication.identityOwner: for workload KEDA reads the role from the service account (IRSA, not EKS Pod Identity); give serviceAccount.annotations eks.amazonaws.com/role-arn" -}}
{{- end -}}
{{- if and (eq $auth.type "secret") (not $auth.existingSecret) -}}
{{- fail "autoscaling.authentication.existingSecret: name the Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" -}}
{{- end -}}
{{- if and (eq $auth.type "existing") (not $auth.existingName) -}}
{{- fail "autoscaling.authentication.existingName: name the TriggerAuthentication that is there" -}}
{{- end -}}
{{- else -}}
{{- if not $config.queue.queue -}}
{{- fail "config.queue.queue: KEDA has to know the queue's name; write it" -}}
{{- end -}}
{{- if not $scaling.rabbitmq.existingSecret -}}
{{- fail "autoscaling.rabbitmq.existingSecret: name the Secret with the URL of RabbitMQ's management API (http://user:password@host:15672/vhost): over AMQP, messages in work cannot be seen" -}}
{{- end -}}
{{- end -}}
{{- if and $scaling.outbox.enabled (not $scaling.outbox.existingSecret) -}}
{{- fail "autoscaling.outbox.existingSecret: name the Secret with KEDA's connection string to the ledger's database" -}}
{{- end -}}
{{- if and $scaling.prometheus.enabled (not (and $scaling.prometheus.serverAddress $scaling.prometheus.query)) -}}
{{- fail "autoscaling.prometheus: give serverAddress and query" -}}
{{- end -}}
{{- end -}}

{{/* A secret in the values would stand in the ConfigMap, and in Helm's own record of the release. */}}
{{- define "transload.refuseSecrets" -}}
{{- $path := .path -}}
{{- range $key, $value := .value -}}
{{- $here := printf "%s.%v" $path $key -}}
{{- if kindIs "map" $value -}}
{{- include "transload.refuseSecrets" (dict "path" $here "value" $value) -}}
{{- else if kindIs "slice" $value -}}
{{- include "transload.refuseSecrets" (dict "path" $here "value" $value) -}}
{{- else if kindIs "string" $value -}}
{{- /* A key that ends so names where a secret lies, but for those that a secret itself is called, and in the options of modules. */}}
{{- $names := or (regexMatch "(_env|_file|_url|_id|_name)$" (toString $key)) (and (hasSuffix "_secret" (toString $key)) (ne (toString $key) "client_secret") (not (contains ".options" $path))) -}}
{{- $named := and (kindIs "string" $key) (regexMatch "(?i)(passw|passphrase|secret|token|private_?key|account_key|credential|connection_string|^key$)" (toString $key)) (not $names) -}}
{{- if and $value (or $named (regexMatch "\\.headers$" $path) (regexMatch "://[^/?#]*:[^/?#]*@" $value)) -}}
{{- fail (printf "%s: a secret does not belong into values; write %s_env with the name of a variable, and that variable's Secret under secretEnv" $here $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
