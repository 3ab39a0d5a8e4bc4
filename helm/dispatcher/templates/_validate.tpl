{{/* Combinations that can't work. Each template prints one line per problem; all of them are told at once. */}}

{{- define "dispatcher.validate" -}}
{{- $problems := list -}}
{{- range $topic := list "config" "labels" "access" "secrets" "migrations" "shutdown" "mesh" "egress" "network" "scaling" "others" -}}
{{- range splitList "\n" (include (printf "dispatcher.problems.%s" $topic) $) -}}
{{- with trim . }}{{- $problems = append $problems . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "these values can't work:\n  %s" (join "\n  " $problems)) -}}
{{- end -}}
{{- end -}}

{{- define "dispatcher.problems.access" -}}
{{- $auth := .Values.auth }}
{{- $hasPolicy := or $auth.policy $auth.policyConfigMap }}
{{- if and (ne $auth.mode "none") (not $hasPolicy) }}
auth.mode={{ $auth.mode }} needs auth.policy or auth.policyConfigMap: who may do what
{{- end }}
{{- if and (eq $auth.mode "none") $hasPolicy }}
auth.mode=none heeds no policy: everybody may do everything; choose a mode, or take auth.policy away
{{- end }}
{{- if and $auth.policy $auth.policyConfigMap }}
auth.policy and auth.policyConfigMap: keep one
{{- end }}
{{- if eq $auth.mode "jwt" }}
{{- if or (not $auth.jwt.issuer) (not $auth.jwt.audiences) (not (or $auth.jwt.keysUrl $auth.jwt.keys)) }}
auth.mode=jwt needs auth.jwt.issuer, auth.jwt.audiences and auth.jwt.keysUrl or auth.jwt.keys
{{- end }}
{{- else if or $auth.jwt.issuer $auth.jwt.audiences $auth.jwt.keysUrl $auth.jwt.keys $auth.jwt.ca }}
auth.jwt means nothing with auth.mode={{ $auth.mode }}
{{- end }}
{{- if and $auth.jwt.keysUrl $auth.jwt.keys }}
auth.jwt.keysUrl and auth.jwt.keys: keep one
{{- end }}
{{- if and (eq $auth.mode "mtls") (not .Values.tls.secretName) }}
auth.mode=mtls needs tls.secretName: our own server's certificate, key and the callers' roots
{{- end }}
{{- if and (eq $auth.mode "tokens") (not .Values.secrets.authTokens.key) }}
auth.mode=tokens needs secrets.authTokens.key
{{- end }}
{{- if and (ne $auth.mode "tokens") .Values.secrets.authTokens.key }}
secrets.authTokens means nothing with auth.mode={{ $auth.mode }}
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.secrets" -}}
{{- $external := .Values.secrets.externalSecret }}
{{- if and $external.enabled .Values.secrets.existingSecret }}
secrets.existingSecret and secrets.externalSecret.enabled: keep one
{{- end }}
{{- if and $external.enabled (not $external.store.name) }}
secrets.externalSecret.store.name must be set
{{- end }}
{{- range $required := list "databaseUrl" "secretKeys" }}
{{- if and (not (index $.Values.secrets $required).key) (not (and $.Values.cnpg.enabled (eq $required "databaseUrl"))) }}
secrets.{{ $required }}.key must be set
{{- end }}
{{- end }}
{{- range $variable, $from := include "dispatcher.secretFiles" . | fromYaml }}
{{- if not $from.name }}
secrets: where is {{ $variable | trimSuffix "_FILE" }}? Set secrets.existingSecret, secrets.externalSecret.enabled or its own secretName
{{- else if and $external.enabled (eq $from.name (include "dispatcher.fullname" $)) (not (hasKey $external.data $from.key)) }}
secrets.externalSecret.data lacks {{ $from.key }}, which {{ $variable | trimSuffix "_FILE" }} is to come from
{{- end }}
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.migrations" -}}
{{- $mode := .Values.migrations.mode }}
{{- if and (eq $mode "hook") .Values.secrets.externalSecret.enabled }}
migrations.mode=hook runs before the ExternalSecret is there: use initContainer or job
{{- end }}
{{- if and (eq $mode "hook") .Values.cnpg.enabled }}
migrations.mode=hook runs before the database is there: use initContainer or job
{{- end }}
{{- range $mesh := list "istio" "linkerd" }}
{{- if and (eq $mode "initContainer") (index $.Values $mesh).enabled (not (index $.Values $mesh).nativeSidecars) }}
migrations.mode=initContainer has no network with {{ $mesh }}.nativeSidecars=false: use job
{{- end }}
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.shutdown" -}}
{{- $needed := include "dispatcher.drainSeconds" . | int64 }}
{{- $grace := include "dispatcher.graceSeconds" . | int64 }}
{{- if le $grace $needed }}
shutdown.terminationGracePeriodSeconds={{ $grace }} is too short: a drain may take {{ $needed }} s (preStop {{ .Values.shutdown.preStop.seconds }}, 2 x DISPATCHER_GRPC_DRAIN_S, 3 x DISPATCHER_DELIVERY_DRAIN_S, 2 x DISPATCHER_TELEMETRY_FLUSH_TIMEOUT_S, DISPATCHER_DATABASE_CONNECT_TIMEOUT_S, 10); set more, lower those, or leave it empty
{{- end }}
{{- if and (eq .Values.shutdown.preStop.action "sleep") (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) }}
shutdown.preStop.action=sleep needs Kubernetes 1.30, this is {{ .Capabilities.KubeVersion.Version }}: use exec or auto
{{- end }}
{{- if eq .Values.probes.readiness "grpc" }}
{{- if .Values.tls.secretName }}
probes.readiness=grpc can't be used with tls.secretName: a kubelet speaks plain gRPC; use http
{{- end }}
{{- if .Values.linkerd.enabled }}
probes.readiness=grpc can't be used with linkerd.enabled: its proxy lets a kubelet's HTTP probes in, no others; use http
{{- end }}
{{- if eq (include "dispatcher.setting" (list . "DISPATCHER_HEALTH_ACCESS" "")) "authenticated" }}
probes.readiness=grpc can't be used with DISPATCHER_HEALTH_ACCESS=authenticated: a kubelet has no credentials; use http
{{- end }}
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.mesh" -}}
{{- $mode := .Values.auth.mode }}
{{- $istio := .Values.istio.enabled }}
{{- $linkerd := .Values.linkerd.enabled }}
{{- if and $istio $linkerd }}
istio.enabled and linkerd.enabled: a pod is in one mesh
{{- end }}
{{- if and .Values.istio.ambient (or $istio $linkerd) }}
istio.ambient with {{ ternary "istio" "linkerd" $istio }}.enabled: a pod has a sidecar, or is in ambient mode
{{- end }}
{{- if and (eq $mode "linkerd") (not $linkerd) }}
auth.mode=linkerd needs linkerd.enabled: its proxy tells who calls
{{- end }}
{{- if and (eq $mode "xfcc") $linkerd }}
auth.mode=xfcc with linkerd.enabled: Linkerd sends no x-forwarded-client-cert; use linkerd
{{- end }}
{{- if and (eq $mode "xfcc") (not $istio) (not $linkerd) (not (include "dispatcher.setting" (list . "DISPATCHER_AUTH_TRUSTED_PEERS" ""))) }}
auth.mode=xfcc needs istio.enabled, or the Envoy that tells who calls in config.DISPATCHER_AUTH_TRUSTED_PEERS{{ ternary "; istio.ambient has none: use jwt, or mtls" "" .Values.istio.ambient }}
{{- end }}
{{- if and (eq $mode "mtls") (or $istio $linkerd) }}
auth.mode=mtls in a mesh: the sidecar ends TLS, so our server never sees a caller's certificate; use {{ ternary "xfcc" "linkerd" $istio }}
{{- else if and .Values.tls.secretName (or $istio $linkerd) }}
tls.secretName in a mesh: the sidecar hands calls on in the clear, so nobody would get through; take tls.secretName away
{{- end }}
{{- $names := list }}
{{- range .Values.istio.serviceEntries }}
{{- if has .name $names }}
istio.serviceEntries: {{ .name }} is there twice
{{- end }}
{{- if and (eq .name "egress") (eq $.Values.egress.mode "gateway") }}
istio.serviceEntries: egress is the name of what egress.mode=gateway makes; choose another
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.egress" -}}
{{- $mode := .Values.egress.mode }}
{{- $hasUrl := .Values.secrets.egressProxyUrl.key }}
{{- if and (eq $mode "proxy") (not $hasUrl) }}
egress.mode=proxy needs secrets.egressProxyUrl.key
{{- end }}
{{- if and (ne $mode "proxy") $hasUrl }}
secrets.egressProxyUrl means nothing with egress.mode={{ $mode }}: set egress.mode=proxy
{{- end }}
{{- if eq $mode "gateway" }}
{{- if not .Values.istio.enabled }}
egress.mode=gateway needs istio.enabled
{{- end }}
{{- if not .Values.egress.gateway.hosts }}
egress.mode=gateway needs egress.gateway.hosts
{{- end }}
{{- range $name := list "DISPATCHER_EGRESS_ALLOWED_PORTS" "DISPATCHER_EGRESS_ALLOW_HTTP" }}
{{- if include "dispatcher.setting" (list $ $name "") }}
config.{{ $name }}: egress.mode=gateway sets it: https on 443 only
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What our own NetworkPolicy would keep from its way. */}}
{{- define "dispatcher.problems.network" -}}
{{- $policy := .Values.networkPolicy }}
{{- $port := (urlParse .Values.auth.jwt.keysUrl).host | regexFind ":[0-9]+$" | trimPrefix ":" | default "443" }}
{{- if or (gt (len $port) 5) (lt (atoi $port) 1) (gt (atoi $port) 65535) }}
auth.jwt.keysUrl: {{ $port }} is no port
{{- end }}
{{- $peers := pick $policy "callers" "operators" "monitoring" "keda" "dns" }}
{{- range $name := list "database" "jwks" "collector" }}
{{- $_ := set $peers (printf "%s.to" $name) (index $policy $name).to }}
{{- end }}
{{- range $name, $list := $peers }}
{{- include "dispatcher.problems.peers" (list (printf "networkPolicy.%s" $name) $list) }}
{{- end }}
{{- include "dispatcher.problems.peers" (list "egress.proxy.to" .Values.egress.proxy.to) }}
{{- if $policy.enabled }}
{{- $isPublicOnly := not (or $policy.extraEgress (include "dispatcher.setting" (list . "DISPATCHER_EGRESS_ALLOWED_NETWORKS" ""))) }}
{{- if and (eq .Values.egress.mode "direct") (include "dispatcher.setting" (list . "DISPATCHER_EGRESS_ALLOWED_HOSTS" "")) $isPublicOnly }}
config.DISPATCHER_EGRESS_ALLOWED_HOSTS: a NetworkPolicy knows no names, so it lets nothing out to those hosts; let out to their addresses by networkPolicy.extraEgress, or to whole networks by config.DISPATCHER_EGRESS_ALLOWED_NETWORKS
{{- end }}
{{- if and .Values.adminService.enabled (not (or $policy.operators $policy.extraIngress)) }}
adminService.enabled with networkPolicy.operators empty: its Service would be there, and nobody let in; name who may reach it, or let them in by networkPolicy.extraIngress
{{- end }}
{{- if and .Values.cnpg.enabled (ne (int64 $policy.database.port) 5432) }}
networkPolicy.database.port={{ int64 $policy.database.port }} with cnpg.enabled: its pods listen on 5432
{{- end }}
{{- $collector := list }}
{{- range $policy.collector.ports }}{{ $collector = append $collector (int64 . | toString) }}{{ end }}
{{- if not $policy.extraEgress }}
{{- range include "dispatcher.collectorPorts" . | fromYamlArray }}
{{- if not (has .port $collector) }}
{{ .where }}: networkPolicy.collector.ports lacks {{ .port }}, the port of {{ .endpoint }} by {{ .protocol }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Peers of a NetworkPolicy: (list "path" peers). */}}
{{- define "dispatcher.problems.peers" -}}
{{- range last . }}
{{- if and .ipBlock (gt (len .) 1) }}
{{ first $ }}: ipBlock {{ .ipBlock.cidr }} stands beside a selector, which the API server refuses: make it a peer of its own
{{- end }}
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.scaling" -}}
{{- $scaling := .Values.autoscaling }}
{{- if gt (int64 $scaling.minReplicas) (int64 $scaling.maxReplicas) }}
autoscaling.minReplicas must not exceed autoscaling.maxReplicas
{{- end }}
{{- if and (eq $scaling.mode "keda") (eq $scaling.keda.trigger "prometheus") (not $scaling.keda.prometheusAddress) }}
autoscaling.keda.trigger=prometheus needs autoscaling.keda.prometheusAddress
{{- end }}
{{- end -}}

{{- define "dispatcher.problems.others" -}}
{{- if regexMatch "^[^a-z]" (include "dispatcher.fullname" .) }}
{{ include "dispatcher.fullname" . }} begins with no letter, which a Service's name must: set fullnameOverride
{{- end }}
{{- if contains "." (include "dispatcher.fullname" .) }}
{{ include "dispatcher.fullname" . }} has a dot, which a Service's name must not: set fullnameOverride
{{- end }}
{{- $given := get .Values.cnpg.parameters "max_connections" }}
{{- if and .Values.cnpg.enabled $given (lt (int64 $given) (include "dispatcher.connections" . | int64 | add 10)) }}
cnpg.parameters.max_connections={{ $given }} is too few: there may be {{ include "dispatcher.connections" . }}, and the operator has some; set {{ include "dispatcher.connectionsWanted" . }}, or leave it out
{{- end }}
{{- if and .Values.grpcRoute.enabled (not .Values.grpcRoute.parentRefs) }}
grpcRoute.enabled needs grpcRoute.parentRefs
{{- end }}
{{- if and .Values.grpcRoute.enabled .Values.tls.secretName }}
grpcRoute.enabled with tls.secretName: a Gateway speaks plain gRPC to what is behind it, unless a BackendTLSPolicy says otherwise; take tls.secretName away
{{- end }}
{{- end -}}
