{{/* Rules of the NetworkPolicy. An empty list of peers would mean everybody, so such a rule is left out. */}}

{{- define "dispatcher.ingressRules" -}}
{{- $rules := list -}}
{{- $hasScaler := include "dispatcher.hasScaler" . -}}
{{- with .Values.networkPolicy -}}
{{- if .callers -}}
{{- $rules = append $rules (dict "from" .callers "ports" (include "dispatcher.meshedPorts" (list $ 50051) | fromYamlArray)) -}}
{{- end -}}
{{- if and $.Values.adminService.enabled .operators -}}
{{- $rules = append $rules (dict "from" .operators "ports" (include "dispatcher.meshedPorts" (list $ 50052) | fromYamlArray)) -}}
{{- end -}}
{{- if .monitoring -}}
{{- $ports := concat (list 8080) (include "dispatcher.proxyMetricsPorts" $ | fromYamlArray) -}}
{{- $rules = append $rules (dict "from" .monitoring "ports" (include "dispatcher.meshedPorts" (concat (list $) $ports) | fromYamlArray)) -}}
{{- end -}}
{{- if and $hasScaler .keda -}}
{{- /* The port is kept out of a sidecar; ambient mode knows no exceptions. */ -}}
{{- $ports := list (dict "protocol" "TCP" "port" 50053) -}}
{{- if $.Values.istio.ambient -}}{{- $ports = include "dispatcher.meshedPorts" (list $ 50053) | fromYamlArray -}}{{- end -}}
{{- $rules = append $rules (dict "from" .keda "ports" $ports) -}}
{{- end -}}
{{- if $.Values.istio.ambient -}}
{{- /* In ambient mode a kubelet's probes come from these addresses, which Istio's CNI gives them, and not from the node's. */ -}}
{{- $kubelet := list -}}
{{- range list "169.254.7.127/32" "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128" -}}
{{- $kubelet = append $kubelet (dict "ipBlock" (dict "cidr" .)) -}}
{{- end -}}
{{- $ports := list (dict "protocol" "TCP" "port" 8080) -}}
{{- if eq $.Values.probes.readiness "grpc" -}}{{- $ports = append $ports (dict "protocol" "TCP" "port" 50051) -}}{{- end -}}
{{- $rules = append $rules (dict "from" $kubelet "ports" $ports) -}}
{{- end -}}
{{- with concat $rules .extraIngress -}}
{{- toYaml . -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where webhooks go. */}}
{{- define "dispatcher.webhookRule" -}}
{{- $mode := .Values.egress.mode -}}
{{- if eq $mode "direct" -}}
- to:
    {{- include "dispatcher.publicPeers" . | nindent 4 }}
    {{- with include "dispatcher.allowedPeers" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
  ports:
    {{- include "dispatcher.ports" (include "dispatcher.egressPorts" .) | trim | nindent 4 }}
{{- else if eq $mode "proxy" -}}
- ports:
    {{- include "dispatcher.meshedPorts" (list . .Values.egress.proxy.port) | trim | nindent 4 }}
  {{- with .Values.egress.proxy.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Values.egress.gateway.namespace | quote }}}}
      podSelector:
        matchLabels:
          {{- toYaml .Values.egress.gateway.selector | nindent 10 }}
{{- end -}}
{{- end -}}

{{/* Who, in the eyes of ztunnel, reaches a port that may be asked from outside the mesh: (list $ port "list of the
     NetworkPolicy"). Who has no identity comes in the clear, past no tunnel, so the NetworkPolicy sees the port itself and
     decides; who has one comes by 15008, which is all that the NetworkPolicy sees. */}}
{{- define "dispatcher.ambientRule" -}}
{{- $root := index . 0 -}}
- to:
    - operation:
        ports: [{{ index . 1 | quote }}]
  {{- if $root.Values.networkPolicy.enabled }}
  from:
    - source:
        notPrincipals: ["*"]
    {{- with include "dispatcher.namespacesOf" (list $root (index $root.Values.networkPolicy (index . 2))) | fromYamlArray }}
    - source:
        namespaces:
          {{- toYaml . | nindent 10 }}
    {{- end }}
  {{- end }}
{{- end -}}

{{/* The namespaces of peers, as far as they have names: (list $ peers). What only some pods of all namespaces are is left
     out, since it would be all of them. */}}
{{- define "dispatcher.namespacesOf" -}}
{{- $root := index . 0 -}}
{{- $found := list -}}
{{- range index . 1 -}}
{{- $labels := default dict (.namespaceSelector).matchLabels -}}
{{- if hasKey $labels "kubernetes.io/metadata.name" -}}
{{- $found = append $found (index $labels "kubernetes.io/metadata.name") -}}
{{- else if not (kindIs "invalid" .namespaceSelector) -}}
{{- if not (or $labels .namespaceSelector.matchExpressions (.podSelector).matchLabels (.podSelector).matchExpressions) -}}
{{- $found = append $found "*" -}}
{{- end -}}
{{- else if not (kindIs "invalid" .podSelector) -}}
{{- $found = append $found $root.Release.Namespace -}}
{{- end -}}
{{- end -}}
{{- uniq $found | toYaml -}}
{{- end -}}
