{{/* How Prometheus scrapes a pod; with the token, if there is one, also the metrics that name a tenant. */}}
{{- define "dispatcher.scrape" -}}
port: http-ops
path: /metrics
interval: {{ .Values.monitoring.interval }}
{{- with (include "dispatcher.secretFiles" . | fromYaml).DISPATCHER_OPS_TOKEN_FILE }}
authorization:
  type: Bearer
  credentials: {name: {{ .name | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end -}}

{{- define "dispatcher.monitoringMetadata" -}}
{{- include "dispatcher.metadata" (append . (index . 0).Values.monitoring.labels) -}}
{{- end -}}

{{/* Puts a base before the path of each runbook: (list "https://…" rules). Renders nothing. */}}
{{- define "dispatcher.setRunbooks" -}}
{{- $base := index . 0 -}}
{{- range (index . 1).groups -}}
{{- range .rules -}}
{{- if hasPrefix "docs/" (dig "annotations" "runbook_url" "" .) -}}
{{- $_ := set .annotations "runbook_url" (printf "%s/%s" $base .annotations.runbook_url) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
