{{/* What config, extraEnv, labels and annotations may not hold: one line per problem, as in _validate.tpl. */}}

{{- define "dispatcher.problems.config" -}}
{{- range $name, $where := include "dispatcher.settingsElsewhere" . | fromYaml }}
{{- if hasKey $.Values.config $name }}
config.{{ $name }}: {{ $where }}
{{- end }}
{{- end }}
{{- range $name := list "OTEL_EXPORTER_OTLP_HEADERS" "OTEL_EXPORTER_OTLP_TRACES_HEADERS" "OTEL_EXPORTER_OTLP_METRICS_HEADERS" }}
{{- if hasKey $.Values.config $name }}
config.{{ $name }}: headers hold credentials; take them from a Secret by extraEnv
{{- end }}
{{- end }}
{{- include "dispatcher.problems.bounds" . }}
{{- $files := include "dispatcher.secretFiles" . | fromYaml }}
{{- if and (hasKey $files "OTEL_EXPORTER_OTLP_CERTIFICATE") (hasKey .Values.config "OTEL_EXPORTER_OTLP_CERTIFICATE") }}
config.OTEL_EXPORTER_OTLP_CERTIFICATE and secrets.collectorCa: keep one
{{- end }}
{{- $seen := concat (list "POD_NAME" "POD_NAMESPACE" "POD_IPS") (keys $files) }}
{{- range .Values.extraEnv }}
{{- if hasPrefix "DISPATCHER_" .name }}
extraEnv: {{ .name }} goes into config, or into secrets
{{- end }}
{{- if has .name $seen }}
extraEnv: {{ .name }} is there already
{{- end }}
{{- if and (hasKey . "value") (hasKey . "valueFrom") }}
extraEnv: {{ .name }} has a value and a valueFrom: keep one
{{- end }}
{{- $seen = append $seen .name }}
{{- end }}
{{- end -}}

{{/* Numbers, which may be text; ports and networks, which our own objects speak of, too. */}}
{{- define "dispatcher.problems.bounds" -}}
{{- range $name, $bounds := include "dispatcher.bounds" . | fromYaml }}
{{- with include "dispatcher.setting" (list $ $name "") }}
{{- if or (lt (float64 .) (first $bounds | float64)) (gt (float64 .) (last $bounds | float64)) }}
config.{{ $name }}: {{ . }} is not between {{ include "dispatcher.text" (first $bounds) }} and {{ include "dispatcher.text" (last $bounds) }}
{{- end }}
{{- end }}
{{- end }}
{{- range splitList "," (include "dispatcher.egressPorts" .) }}
{{- $range := splitList "-" . }}
{{- if not (and (regexMatch "^[0-9]{1,5}(-[0-9]{1,5})?$" .) (le 1 (first $range | atoi)) (le (first $range | atoi) (last $range | atoi)) (le (last $range | atoi) 65535)) }}
config.DISPATCHER_EGRESS_ALLOWED_PORTS: {{ . | quote }} is no port and no range, such as 443,8000-8999
{{- end }}
{{- end }}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])" }}
{{- $bits4 := "(3[0-2]|[12]?[0-9])" }}
{{- $bits6 := "(12[0-8]|1[01][0-9]|[1-9]?[0-9])" }}
{{- range include "dispatcher.allowedNetworks" . | fromYamlArray }}
{{- if not (regexMatch (printf "^(%s([.]%s){3}/%s|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/%s)$" $octet $octet $bits4 $bits6) .) }}
config.DISPATCHER_EGRESS_ALLOWED_NETWORKS: {{ . | quote }} is no network, such as 10.20.0.0/16
{{- else if include "dispatcher.hasHostBits" . }}
config.DISPATCHER_EGRESS_ALLOWED_NETWORKS: {{ . }} has bits beyond its prefix, which the service refuses
{{- end }}
{{- end }}
{{- end -}}

{{/* "true" for 10.1.2.3/8. Of IPv4 only; of IPv6 the service tells at its start. */}}
{{- define "dispatcher.hasHostBits" -}}
{{- $parts := splitList "/" . -}}
{{- if contains "." (first $parts) -}}
{{- $address := 0 -}}
{{- range splitList "." (first $parts) }}{{ $address = add (mul $address 256) (atoi .) }}{{ end -}}
{{- $size := 1 -}}
{{- range until (max 0 (sub 32 (last $parts | atoi)) | int) }}{{ $size = mul $size 2 }}{{ end -}}
{{- if mod $address $size }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* Labels and annotations that are the chart's own: what selects the pods is among them. */}}
{{- define "dispatcher.problems.labels" -}}
{{- $labels := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" }}
{{- $annotations := list "checksum/config" "checksum/secrets" "kubectl.kubernetes.io/default-container" }}
{{- range $own := $labels }}
{{- if hasKey $.Values.commonLabels $own }}
commonLabels: {{ $own }} is set by the chart itself
{{- end }}
{{- if hasKey $.Values.podLabels $own }}
podLabels: {{ $own }} is set by the chart itself
{{- end }}
{{- if hasKey $.Values.monitoring.labels $own }}
monitoring.labels: {{ $own }} is set by the chart itself
{{- end }}
{{- if eq $.Values.monitoring.dashboards.label $own }}
monitoring.dashboards.label: {{ $own }} is set by the chart itself
{{- end }}
{{- end }}
{{- range $own := $annotations }}
{{- if hasKey $.Values.podAnnotations $own }}
podAnnotations: {{ $own }} is set by the chart itself
{{- end }}
{{- end }}
{{- end -}}
