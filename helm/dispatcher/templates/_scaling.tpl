{{/* Up at once, down slowly: each move of partitions makes their endpoints wait for a moment. */}}
{{- define "dispatcher.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 2, periodSeconds: 60}
  selectPolicy: Max
scaleDown:
  stabilizationWindowSeconds: {{ int64 .Values.autoscaling.scaleDownStabilizationSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end -}}

{{/* The number of pods. A scaler's own is told back as it is: helm takes away what an earlier release said and this one
     does not, and no number means one pod. Where nothing lives, or nobody can look (`helm template`), none is told. */}}
{{- define "dispatcher.replicas" -}}
{{- if eq .Values.autoscaling.mode "none" -}}
{{- int64 .Values.replicaCount -}}
{{- else -}}
{{- lookup "apps/v1" "Deployment" .Release.Namespace (include "dispatcher.fullname" .) | dig "spec" "replicas" "" -}}
{{- end -}}
{{- end -}}

{{/* Connections to the database at most: those of all pods, a roll-out's among them, and a migrating Job's. A process has
     its pool and two writers (DISPATCHER_DATABASE_POOL_SIZE_MAX), a listener, and one more during upkeep. An init container
     is done with its own before its pod has any. */}}
{{- define "dispatcher.connections" -}}
{{- include "dispatcher.connectionsOf" (list . (include "dispatcher.podsMax" .)) -}}
{{- end -}}

{{/* What a database of the chart's own is made for: those, those of all pods that a roll-out has told to go, and some for
     the operator and for people. In hundreds, since a change restarts PostgreSQL. */}}
{{- define "dispatcher.connectionsWanted" -}}
{{- $leaving := include "dispatcher.podsMax" . | float64 -}}
{{- $most := include "dispatcher.connectionsOf" (list . (addf $leaving (include "dispatcher.podsMax" . | float64))) | float64 -}}
{{- mulf (divf (addf $most 20.0) 100.0 | ceil) 100.0 | int64 -}}
{{- end -}}

{{- define "dispatcher.podsMax" -}}
{{- ternary .Values.replicaCount .Values.autoscaling.maxReplicas (eq .Values.autoscaling.mode "none") | int64 -}}
{{- end -}}

{{/* Connections of so many pods, with those that a roll-out adds: (list $ pods). */}}
{{- define "dispatcher.connectionsOf" -}}
{{- $pods := index . 1 | float64 -}}
{{- with index . 0 -}}
{{- $surge := .Values.maxSurge -}}
{{- if kindIs "string" $surge -}}
{{- $surge = divf (mulf (include "dispatcher.podsMax" . | float64) (trimSuffix "%" $surge | float64)) 100.0 | ceil -}}
{{- end -}}
{{- $workers := include "dispatcher.setting" (list . "DISPATCHER_WORKERS" 1) | float64 -}}
{{- $each := addf (include "dispatcher.setting" (list . "DISPATCHER_DATABASE_POOL_SIZE_MAX" 8) | float64) 2.0 -}}
{{- $job := ternary 1.0 0.0 (has .Values.migrations.mode (list "job" "hook")) -}}
{{- addf (mulf (addf $pods (float64 $surge)) $workers $each) $job | int64 -}}
{{- end -}}
{{- end -}}

{{/* KEDA's triggers. A metric is divided by its threshold, which gives the number of pods wanted. */}}
{{- define "dispatcher.triggers" -}}
{{- $scaling := .Values.autoscaling -}}
{{- if eq $scaling.keda.trigger "external" -}}
- type: external
  metadata:
    scalerAddress: {{ include "dispatcher.host" (list . "-scaler") }}:50053
    dueBacklogPerInstance: {{ int64 $scaling.dueBacklogPerInstance | toString | quote }}
    oldestDueAgeMaxS: {{ int64 $scaling.oldestDueAgeMaxS | toString | quote }}
{{- else -}}
{{- /* A Deployment's pods have two more parts, so hooks-eu's are none of hooks'. */ -}}
{{- $pods := printf "%s-[a-z0-9]+-[a-z0-9]+" (include "dispatcher.fullname" . | replace "." "[.]") -}}
{{- $series := printf "{namespace=%q,pod=~%q}" .Release.Namespace $pods -}}
- type: prometheus
  metadata:
    serverAddress: {{ $scaling.keda.prometheusAddress }}
    query: sum(dispatcher_backlog_due{{ $series }})
    threshold: {{ int64 $scaling.dueBacklogPerInstance | toString | quote }}
    {{- /* No series is a failure, which keeps the pods, and not a backlog of 0. */}}
    ignoreNullValues: "false"
# As many times the pods that there are as the age exceeds its limit.
- type: prometheus
  metadata:
    serverAddress: {{ $scaling.keda.prometheusAddress }}
    query: max(dispatcher_backlog_due_age_seconds{{ $series }}) / {{ int64 $scaling.oldestDueAgeMaxS }} * scalar(count(count by (pod) (dispatcher_partitions_owned{{ $series }})))
    threshold: "1"
    ignoreNullValues: "false"
{{- end -}}
{{- end -}}
