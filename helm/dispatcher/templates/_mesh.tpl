{{/* What makes a pod part of a mesh. */}}

{{- define "dispatcher.egressPorts" -}}
{{- include "dispatcher.setting" (list . "DISPATCHER_EGRESS_ALLOWED_PORTS" "80,443,1024-65535") -}}
{{- end -}}

{{- define "dispatcher.meshLabels" -}}
{{- include "dispatcher.ambientLabels" . -}}
{{- if .Values.istio.enabled -}}
sidecar.istio.io/inject: "true"
{{- end -}}
{{- end -}}

{{- define "dispatcher.ambientLabels" -}}
{{- if .Values.istio.ambient -}}
istio.io/dataplane-mode: ambient
{{- end -}}
{{- end -}}

{{- define "dispatcher.meshAnnotations" -}}
{{- if .Values.istio.enabled }}
{{- include "dispatcher.istioAnnotations" . }}
{{- end }}
{{- if .Values.linkerd.enabled }}
{{- include "dispatcher.linkerdAnnotations" . }}
{{- end }}
{{- end -}}

{{/* KEDA calls the scaler's port from outside the mesh. */}}
{{- define "dispatcher.istioAnnotations" }}
sidecar.istio.io/nativeSidecar: {{ .Values.istio.nativeSidecars | quote }}
{{- if not .Values.istio.nativeSidecars }}
proxy.istio.io/config: |
  holdApplicationUntilProxyStarts: true
  terminationDrainDuration: {{ include "dispatcher.drainSeconds" . }}s
{{- end }}
{{- if eq .Values.egress.mode "direct" }}
traffic.sidecar.istio.io/includeOutboundIPRanges: {{ join "," .Values.istio.captureNetworks | quote }}
{{- with include "dispatcher.allowedNetworks" . | fromYamlArray }}
traffic.sidecar.istio.io/excludeOutboundIPRanges: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- include "dispatcher.istioExcludedPorts" (list . (eq .Values.egress.mode "direct")) }}
{{- if include "dispatcher.hasScaler" . }}
traffic.sidecar.istio.io/excludeInboundPorts: "50053"
{{- end }}
{{- end -}}

{{/* Ports that Istio's sidecar leaves alone: (list $ whether webhooks' are among them). */}}
{{- define "dispatcher.istioExcludedPorts" }}
{{- with concat (ternary (list 80 443) list (index . 1)) (index . 0).Values.istio.excludeOutboundPorts }}
traffic.sidecar.istio.io/excludeOutboundPorts: {{ join "," . | quote }}
{{- end }}
{{- end -}}

{{- define "dispatcher.linkerdAnnotations" }}
linkerd.io/inject: enabled
config.beta.linkerd.io/proxy-enable-native-sidecar: {{ .Values.linkerd.nativeSidecars | quote }}
{{- if not .Values.linkerd.nativeSidecars }}
config.alpha.linkerd.io/proxy-wait-before-exit-seconds: {{ include "dispatcher.drainSeconds" . | quote }}
{{- end }}
{{- $skipped := .Values.linkerd.skipOutboundPorts }}
{{- if and (kindIs "invalid" $skipped) (eq .Values.egress.mode "direct") }}
{{- $skipped = include "dispatcher.egressPorts" . }}
{{- end }}
{{- with $skipped }}
config.linkerd.io/skip-outbound-ports: {{ . | quote }}
{{- end }}
{{- with .Values.linkerd.opaquePorts }}
config.linkerd.io/opaque-ports: {{ . | quote }}
{{- end }}
{{- if include "dispatcher.hasScaler" . }}
config.linkerd.io/skip-inbound-ports: "50053"
{{- end }}
{{- end -}}

{{/* A Job's pod: in the mesh only where the proxy ends with it. */}}
{{- define "dispatcher.jobMeshLabels" -}}
{{- include "dispatcher.ambientLabels" . -}}
{{- if .Values.istio.enabled -}}
sidecar.istio.io/inject: {{ .Values.istio.nativeSidecars | quote }}
{{- end -}}
{{- end -}}

{{- define "dispatcher.jobMeshAnnotations" -}}
{{- if .Values.istio.enabled -}}
sidecar.istio.io/nativeSidecar: {{ .Values.istio.nativeSidecars | quote }}
{{- include "dispatcher.istioExcludedPorts" (list . false) }}
{{- end -}}
{{- if .Values.linkerd.enabled -}}
linkerd.io/inject: {{ ternary "enabled" "disabled" .Values.linkerd.nativeSidecars }}
config.beta.linkerd.io/proxy-enable-native-sidecar: {{ .Values.linkerd.nativeSidecars | quote }}
{{- with .Values.linkerd.opaquePorts }}
config.linkerd.io/opaque-ports: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}
