{{/* How long a pod takes to end. */}}

{{/* The longest that a pod may take to end, in whole seconds: the preStop, calls in flight and the group commit
     (DISPATCHER_GRPC_DRAIN_S each), attempts in flight, their leases, what is still to be written
     (DISPATCHER_DELIVERY_DRAIN_S each), the last export of a worker and of its supervisor, a database that does not
     answer, and 5 s of slack for each of the two processes. A test compares it with the service's own limits. */}}
{{- define "dispatcher.drainSeconds" -}}
{{- $grpc := include "dispatcher.setting" (list . "DISPATCHER_GRPC_DRAIN_S" 10) | float64 -}}
{{- $delivery := include "dispatcher.setting" (list . "DISPATCHER_DELIVERY_DRAIN_S" 10) | float64 -}}
{{- $telemetry := include "dispatcher.setting" (list . "DISPATCHER_TELEMETRY_FLUSH_TIMEOUT_S" 3) | float64 -}}
{{- $database := include "dispatcher.setting" (list . "DISPATCHER_DATABASE_CONNECT_TIMEOUT_S" 5) | float64 -}}
{{- $stop := addf (mulf 2.0 $grpc) (mulf 3.0 $delivery) (mulf 2.0 $telemetry) $database 10.0 -}}
{{- addf $stop (float64 .Values.shutdown.preStop.seconds) | ceil | int64 -}}
{{- end -}}

{{- define "dispatcher.graceSeconds" -}}
{{- if kindIs "invalid" .Values.shutdown.terminationGracePeriodSeconds -}}
{{- include "dispatcher.drainSeconds" . | int64 | add1 -}}
{{- else -}}
{{- int64 .Values.shutdown.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{- define "dispatcher.preStop" -}}
{{- $action := .Values.shutdown.preStop.action -}}
{{- if eq $action "auto" -}}
{{- $action = ternary "sleep" "exec" (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if eq $action "sleep" -}}
sleep:
  seconds: {{ int64 .Values.shutdown.preStop.seconds }}
{{- else -}}
exec:
  command: [dispatcher, prestop, --sleep-s, {{ int64 .Values.shutdown.preStop.seconds | toString | quote }}]
{{- end -}}
{{- end -}}
