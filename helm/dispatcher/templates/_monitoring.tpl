{{/* How Prometheus scrapes a pod; with the token, if there is one, also the metrics that name a tenant. */}}
{{- define "dispatcher.scrape" -}}
port: http-ops
path: /metrics
interval: {{ .Values.monitoring.interval }}
{{- with (include "dispatcher.secretFiles" . | fromYaml).DISPATCHER_OPS_TOKEN_FILE }}
authorization:
  type: Bearer
  credentials: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end -}}

{{- define "dispatcher.monitoringMetadata" -}}
{{- $root := index . 0 -}}
{{- include "dispatcher.metadata" . }}
{{- with $root.Values.monitoring.labels }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
