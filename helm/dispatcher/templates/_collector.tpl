{{/* Where telemetry goes, as the exporters read it. */}}

{{/* The ports that it leaves by: a list of where each is said, the endpoint, the protocol and the port. A signal has an
     endpoint of its own, or the common one. */}}
{{- define "dispatcher.collectorPorts" -}}
{{- $found := list -}}
{{- range $signal := list "TRACES" "METRICS" -}}
{{- $endpoint := include "dispatcher.signalVariable" (list $ $signal "ENDPOINT") | fromYaml -}}
{{- $protocol := (include "dispatcher.signalVariable" (list $ $signal "PROTOCOL") | fromYaml).value | default "grpc" -}}
{{- with include "dispatcher.endpointPort" (list $endpoint.value $protocol) -}}
{{- $found = append $found (dict "where" $endpoint.where "endpoint" $endpoint.value "protocol" $protocol "port" .) -}}
{{- end -}}
{{- end -}}
{{- uniq $found | toYaml -}}
{{- end -}}

{{/* A signal's own variable, or the common one where it is empty: (list $ "TRACES" "ENDPOINT"). */}}
{{- define "dispatcher.signalVariable" -}}
{{- $own := include "dispatcher.variable" (list (index . 0) (printf "OTEL_EXPORTER_OTLP_%s_%s" (index . 1) (index . 2))) -}}
{{- if ($own | fromYaml).value -}}
{{- $own -}}
{{- else -}}
{{- include "dispatcher.variable" (list (index . 0) (printf "OTEL_EXPORTER_OTLP_%s" (index . 2))) -}}
{{- end -}}
{{- end -}}

{{/* What the container will find in a variable, and where that is said: (list $ "NAME"). extraEnv wins. What comes from
     elsewhere is `$()`, like any text that only the pod can fill. */}}
{{- define "dispatcher.variable" -}}
{{- $name := index . 1 -}}
{{- $found := dict "value" (include "dispatcher.setting" (append . "")) "where" (printf "config.%s" $name) -}}
{{- range (index . 0).Values.extraEnv -}}
{{- if eq .name $name -}}
{{- $value := ternary "$()" (default "" .value) (hasKey . "valueFrom") -}}
{{- $found = dict "value" $value "where" (printf "extraEnv: %s" $name) -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* The port of an endpoint: (list "endpoint" "protocol"). Where none is named gRPC takes 443, for http:// as well, and HTTP
     what its scheme has. Nothing where only the pod knows, or for a socket that is a file. */}}
{{- define "dispatcher.endpointPort" -}}
{{- $endpoint := first . | trim | lower -}}
{{- $authority := regexReplaceAll "[/?#].*$" (regexReplaceAll "^[a-z][a-z0-9+.-]*:/+" $endpoint "") "" -}}
{{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" -}}
{{- if $port -}}
{{- $port -}}
{{- else if and $endpoint (not (contains "$(" (join " " .))) (not (hasPrefix "unix:" $endpoint)) -}}
{{- ternary "80" "443" (and (eq (last .) "http/protobuf") (hasPrefix "http:" $endpoint)) -}}
{{- end -}}
{{- end -}}
