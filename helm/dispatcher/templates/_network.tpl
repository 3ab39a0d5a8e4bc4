{{/* Peers and ports of the NetworkPolicies. */}}

{{/* The world: every address that src/dispatcher/security/addresses.py calls public, and no other; a test compares. Of
     IPv6 only 2000::/3 is given out. Not among them: private, shared, link-local, metadata (168.63.129.16 is Azure's),
     multicast, documentation, transition and reserved ones. */}}
{{- define "dispatcher.publicPeers" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    except:
      - 0.0.0.0/8
      - 10.0.0.0/8
      - 100.64.0.0/10
      - 127.0.0.0/8
      - 168.63.129.16/32
      - 169.254.0.0/16
      - 172.16.0.0/12
      - 192.0.0.0/24
      - 192.0.2.0/24
      - 192.31.196.0/24
      - 192.52.193.0/24
      - 192.88.99.0/24
      - 192.168.0.0/16
      - 192.175.48.0/24
      - 198.18.0.0/15
      - 198.51.100.0/24
      - 203.0.113.0/24
      - 224.0.0.0/4
      - 240.0.0.0/4
- ipBlock:
    cidr: 2000::/3
    except:
      - 2001::/23
      - 2001:db8::/32
      - 2002::/16
      - 2620:4f:8000::/48
      - 3fff::/20
{{- end -}}

{{/* Networks that webhooks may go to although they are not public. */}}
{{- define "dispatcher.allowedPeers" -}}
{{- range include "dispatcher.allowedNetworks" . | fromYamlArray }}
- ipBlock:
    cidr: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The same as a list, each with its prefix: a setting may have blanks and bare addresses, which nobody else takes. */}}
{{- define "dispatcher.allowedNetworks" -}}
{{- $networks := list -}}
{{- range splitList "," (include "dispatcher.setting" (list . "DISPATCHER_EGRESS_ALLOWED_NETWORKS" "")) -}}
{{- with trim . -}}
{{- $networks = append $networks (ternary . (printf "%s/%s" . (ternary "128" "32" (contains ":" .))) (contains "/" .)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $networks -}}
{{- end -}}

{{/* `80,443,1024-65535` as ports of a rule. */}}
{{- define "dispatcher.ports" -}}
{{- range splitList "," . }}
{{- $range := splitList "-" (trim .) }}
- protocol: TCP
  port: {{ first $range }}
  {{- if gt (len $range) 1 }}
  endPort: {{ last $range }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A rule without peers would open the ports to the world. */}}
{{- define "dispatcher.dnsRule" -}}
{{- with .Values.networkPolicy.dns -}}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    {{- range $.Values.networkPolicy.dnsPorts }}
    - {protocol: UDP, port: {{ int64 . }}}
    - {protocol: TCP, port: {{ int64 . }}}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* Migrations go past a pooler, an init container's as well, by a port of its own. */}}
{{- define "dispatcher.databaseRule" -}}
{{- $ports := list (int64 .Values.networkPolicy.database.port) -}}
{{- if .Values.secrets.databaseDirectUrl.key -}}
{{- $ports = append $ports (int64 .Values.networkPolicy.database.directPort) | uniq -}}
{{- end -}}
- ports:
    {{- include "dispatcher.meshedPorts" (concat (list .) $ports) | trim | nindent 4 }}
  {{- if .Values.cnpg.enabled }}
  to:
    - podSelector: {matchLabels: {cnpg.io/cluster: {{ include "dispatcher.fullname" . }}-db}}
  {{- else if .Values.networkPolicy.database.to }}
  to:
    {{- toYaml .Values.networkPolicy.database.to | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* The issuer's keys are fetched by the service itself, past any egress proxy. Where nobody says where the issuer is, it
     is public: 443 to all private networks would be what tenants' URLs are kept from. */}}
{{- define "dispatcher.jwksRule" -}}
{{- if and (eq .Values.auth.mode "jwt") .Values.auth.jwt.keysUrl -}}
{{- $jwks := .Values.networkPolicy.jwks -}}
{{- $port := (urlParse .Values.auth.jwt.keysUrl).host | regexFind ":[0-9]+$" | trimPrefix ":" | default "443" -}}
{{- if $jwks.to -}}
- to:
    {{- toYaml $jwks.to | nindent 4 }}
  ports:
    {{- include "dispatcher.meshedPorts" (list . (default $port $jwks.port)) | trim | nindent 4 }}
{{- else -}}
- to:
    {{- include "dispatcher.publicPeers" . | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ default $port $jwks.port | int64 }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A sidecar's way to its control plane; it is in the pod, so the pod's policy holds for it. */}}
{{- define "dispatcher.controlPlaneRule" -}}
{{- if .Values.istio.enabled }}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Values.istio.namespace | quote }}}}
  ports:
    - {protocol: TCP, port: 15012}
{{- end }}
{{- if .Values.linkerd.enabled }}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Values.linkerd.namespace | quote }}}}
  ports:
    {{- include "dispatcher.meshedPorts" (list . 8080 8086 8090) | trim | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Where a sidecar tells of itself: Istio's agent and its Envoy, Linkerd's proxy. It does not capture these ports. */}}
{{- define "dispatcher.proxyMetricsPorts" -}}
{{- $ports := list -}}
{{- if .Values.istio.enabled -}}{{- $ports = concat $ports (list 15020 15090) -}}{{- end -}}
{{- if .Values.linkerd.enabled -}}{{- $ports = append $ports 4191 -}}{{- end -}}
{{- toYaml $ports -}}
{{- end -}}

{{/* Ports as packets have them: between two pods of a mesh Linkerd's proxy's own takes their place, and in Istio's ambient
     mode ztunnel's. (list $ port…) */}}
{{- define "dispatcher.meshedPorts" -}}
{{- $root := first . -}}
{{- range rest . }}
- {protocol: TCP, port: {{ int64 . }}}
{{- end }}
{{- if $root.Values.linkerd.enabled }}
- {protocol: TCP, port: 4143}
{{- end }}
{{- if $root.Values.istio.ambient }}
- {protocol: TCP, port: 15008}
{{- end }}
{{- end -}}
