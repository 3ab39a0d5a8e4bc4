{{/* What the service is told: settings, secrets as files, access files. */}}

{{/* Settings that config may not hold, and where they go instead. A test compares the names with the service's. */}}
{{- define "dispatcher.settingsElsewhere" -}}
DISPATCHER_DATABASE_URL: it is a secret, use secrets.databaseUrl
DISPATCHER_DATABASE_DIRECT_URL: it is a secret, use secrets.databaseDirectUrl
DISPATCHER_DATABASE_PASSWORD_FILE: use secrets.databasePassword
DISPATCHER_SECRET_KEYS: it is a secret, use secrets.secretKeys
DISPATCHER_OPS_TOKEN: it is a secret, use secrets.opsToken
DISPATCHER_EGRESS_PROXY_URL: it is a secret, use secrets.egressProxyUrl
DISPATCHER_CLIENT_TOKEN: it is a secret and means nothing to the service
DISPATCHER_GRPC_LISTEN: use listenHost
DISPATCHER_ADMIN_LISTEN: use adminService.enabled
DISPATCHER_OPS_LISTEN: use listenHost
DISPATCHER_SCALER_LISTEN: use autoscaling.mode
DISPATCHER_AUTH_MODE: use auth.mode
DISPATCHER_AUTH_POLICY_FILE: use auth.policy
DISPATCHER_AUTH_TOKENS_FILE: use secrets.authTokens
DISPATCHER_AUTH_JWT_KEYS: use auth.jwt.keysUrl
DISPATCHER_AUTH_JWT_CA_FILE: use auth.jwt.ca
DISPATCHER_AUTH_JWT_ISSUER: use auth.jwt.issuer
DISPATCHER_AUTH_JWT_AUDIENCES: use auth.jwt.audiences
DISPATCHER_TLS_CERTIFICATE_FILE: use tls.secretName
DISPATCHER_TLS_KEY_FILE: use tls.secretName
DISPATCHER_TLS_CLIENT_CA_FILE: use tls.clientCaKey
{{- end -}}

{{/* A setting of config as text: (list $ "NAME" default). An empty one is not set: so the service reads it. */}}
{{- define "dispatcher.setting" -}}
{{- $given := get (index . 0).Values.config (index . 1) -}}
{{- include "dispatcher.text" $given | default (include "dispatcher.text" (index . 2)) -}}
{{- end -}}

{{/* The settings of config that are set, as a map. */}}
{{- define "dispatcher.config" -}}
{{- range $name, $value := .Values.config }}
{{- with include "dispatcher.text" $value }}
{{ $name }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Everything that is no secret, as a map: the data of the ConfigMap. */}}
{{- define "dispatcher.settings" -}}
{{- $listen := .Values.listenHost -}}
{{- include "dispatcher.config" . }}
DISPATCHER_GRPC_LISTEN: {{ printf "%s:50051" $listen | quote }}
DISPATCHER_OPS_LISTEN: {{ printf "%s:8080" $listen | quote }}
{{- if .Values.adminService.enabled }}
DISPATCHER_ADMIN_LISTEN: {{ printf "%s:50052" $listen | quote }}
{{- end }}
{{- if include "dispatcher.hasScaler" . }}
DISPATCHER_SCALER_LISTEN: {{ printf "%s:50053" $listen | quote }}
{{- end }}
{{- if eq .Values.egress.mode "gateway" }}
DISPATCHER_EGRESS_ALLOWED_PORTS: "443"
DISPATCHER_EGRESS_ALLOW_HTTP: "false"
{{- end }}
{{- include "dispatcher.accessSettings" . }}
{{- end -}}

{{- define "dispatcher.accessSettings" }}
DISPATCHER_AUTH_MODE: {{ .Values.auth.mode }}
{{- if ne .Values.auth.mode "none" }}
DISPATCHER_AUTH_POLICY_FILE: /etc/dispatcher/access/policy.yaml
{{- end }}
{{- if eq .Values.auth.mode "jwt" }}
DISPATCHER_AUTH_JWT_ISSUER: {{ .Values.auth.jwt.issuer | quote }}
DISPATCHER_AUTH_JWT_AUDIENCES: {{ join "," .Values.auth.jwt.audiences | quote }}
DISPATCHER_AUTH_JWT_KEYS: {{ default "/etc/dispatcher/access/jwks.json" .Values.auth.jwt.keysUrl | quote }}
{{- if .Values.auth.jwt.ca }}
DISPATCHER_AUTH_JWT_CA_FILE: /etc/dispatcher/access/jwt-ca.pem
{{- end }}
{{- end }}
{{- if .Values.tls.secretName }}
DISPATCHER_TLS_CERTIFICATE_FILE: /etc/dispatcher/tls/tls.crt
DISPATCHER_TLS_KEY_FILE: /etc/dispatcher/tls/tls.key
{{- end }}
{{- if eq .Values.auth.mode "mtls" }}
DISPATCHER_TLS_CLIENT_CA_FILE: /etc/dispatcher/tls/{{ .Values.tls.clientCaKey }}
{{- end }}
{{- end -}}

{{/* Files of the ConfigMap for access: what a running process re-reads. */}}
{{- define "dispatcher.accessFiles" -}}
{{- if .Values.auth.policy }}
policy.yaml: |
  {{- toYaml .Values.auth.policy | nindent 2 }}
{{- end }}
{{- if .Values.auth.jwt.keys }}
jwks.json: |
  {{- .Values.auth.jwt.keys | nindent 2 }}
{{- end }}
{{- if .Values.auth.jwt.ca }}
jwt-ca.pem: |
  {{- .Values.auth.jwt.ca | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The secrets in use, by variable: which Secret, which key, which file. */}}
{{- define "dispatcher.secretFiles" -}}
{{- $fallback := include "dispatcher.secretName" . -}}
{{- $variables := dict
  "databaseUrl" "DISPATCHER_DATABASE_URL_FILE"
  "databaseDirectUrl" "DISPATCHER_DATABASE_DIRECT_URL_FILE"
  "databasePassword" "DISPATCHER_DATABASE_PASSWORD_FILE"
  "secretKeys" "DISPATCHER_SECRET_KEYS_FILE"
  "opsToken" "DISPATCHER_OPS_TOKEN_FILE"
  "egressProxyUrl" "DISPATCHER_EGRESS_PROXY_URL_FILE"
  "authTokens" "DISPATCHER_AUTH_TOKENS_FILE"
  "databaseCa" "PGSSLROOTCERT"
  "collectorCa" "OTEL_EXPORTER_OTLP_CERTIFICATE" -}}
{{- range $value, $variable := $variables }}
{{- $entry := index $.Values.secrets $value }}
{{- $name := default $fallback $entry.secretName }}
{{- $key := $entry.key }}
{{- if and (eq $value "databaseUrl") $.Values.cnpg.enabled }}
{{- $name = printf "%s-db-app" (include "dispatcher.fullname" $) }}
{{- $key = "uri" }}
{{- end }}
{{- if $key }}
{{ $variable }}: {name: {{ $name | quote }}, key: {{ $key | quote }}, path: {{ kebabcase $value }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "dispatcher.secretName" -}}
{{- if .Values.secrets.externalSecret.enabled -}}
{{- include "dispatcher.fullname" . -}}
{{- else -}}
{{- .Values.secrets.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* A projected volume's sources: (list $ "PREFIX"), those secrets whose file begins so. */}}
{{- define "dispatcher.secretSources" -}}
{{- $prefix := index . 1 -}}
{{- range $variable, $from := include "dispatcher.secretFiles" (index . 0) | fromYaml }}
{{- if hasPrefix $prefix $from.path }}
- secret:
    name: {{ $from.name | quote }}
    items:
      - key: {{ $from.key | quote }}
        path: {{ $from.path }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The environment that names those files: (list $ "PREFIX"). */}}
{{- define "dispatcher.secretEnv" -}}
{{- $prefix := index . 1 -}}
{{- range $variable, $from := include "dispatcher.secretFiles" (index . 0) | fromYaml }}
{{- if hasPrefix $prefix $from.path }}
- name: {{ $variable }}
  value: /etc/dispatcher/secrets/{{ $from.path }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What only the pod knows. Its own address is a trusted peer with Linkerd, whose proxy calls the application by it;
     Istio's calls from 127.0.0.6, or from ::6. */}}
{{- define "dispatcher.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- $given := list -}}
{{- range .Values.extraEnv }}{{ $given = append $given .name }}{{ end -}}
{{- if not (or (include "dispatcher.setting" (list . "OTEL_RESOURCE_ATTRIBUTES" "")) (has "OTEL_RESOURCE_ATTRIBUTES" $given)) }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME)
{{- end }}
{{- if not (include "dispatcher.setting" (list . "DISPATCHER_AUTH_TRUSTED_PEERS" "")) }}
{{- if eq .Values.auth.mode "linkerd" }}
- name: POD_IPS
  valueFrom: {fieldRef: {fieldPath: status.podIPs}}
- name: DISPATCHER_AUTH_TRUSTED_PEERS
  value: 127.0.0.0/8,::1/128,$(POD_IPS)
{{- else if eq .Values.auth.mode "xfcc" }}
- name: DISPATCHER_AUTH_TRUSTED_PEERS
  value: 127.0.0.0/8,::1/128,::6/128
{{- end }}
{{- end }}
{{- end -}}

{{/* The environment of a migration: the database, and nothing else. */}}
{{- define "dispatcher.migrateEnv" -}}
{{- range $name, $value := include "dispatcher.config" . | fromYaml }}
{{- if hasPrefix "DISPATCHER_DATABASE_" $name }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- include "dispatcher.secretEnv" (list . "database-") }}
{{- end -}}

{{/* A migration's container; safe to repeat, and when several start at once: it takes an advisory lock. */}}
{{- define "dispatcher.migrateContainer" -}}
name: migrate
image: {{ include "dispatcher.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [migrate]
env:
  {{- include "dispatcher.migrateEnv" . | trim | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml .Values.migrations.resources | nindent 2 }}
securityContext:
  {{- include "dispatcher.securityContext" . | nindent 2 }}
volumeMounts:
  - name: secrets
    mountPath: /etc/dispatcher/secrets
    readOnly: true
  - name: tmp
    mountPath: /tmp
{{- end -}}
