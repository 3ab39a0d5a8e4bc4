{{/* Names, labels and small texts. */}}

{{- define "dispatcher.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the suffixes that objects add. */}}
{{- define "dispatcher.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "dispatcher.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "dispatcher.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods that serve, and no others: a migration's pod has another component. */}}
{{- define "dispatcher.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dispatcher.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end -}}

{{/* Labels of a pod: without the chart's own version, which would roll the pods for nothing. Merged, here and below, since
     YAML takes no key twice; the first one's word counts. The schema keeps the chart's own keys from being given. */}}
{{- define "dispatcher.podLabels" -}}
{{- $selected := include "dispatcher.selectorLabels" . | fromYaml -}}
{{- $version := dict "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $mesh := include "dispatcher.meshLabels" . | fromYaml -}}
{{- merge dict $selected $version $mesh .Values.podLabels .Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "dispatcher.podAnnotations" -}}
{{- $own := dict
  "kubectl.kubernetes.io/default-container" "dispatcher"
  "checksum/config" (include "dispatcher.settings" . | sha256sum)
  "checksum/secrets" (list .Values.secrets .Values.tls | toJson | sha256sum) -}}
{{- merge dict $own .Values.podAnnotations (include "dispatcher.meshAnnotations" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* What selects a migration's pods. */}}
{{- define "dispatcher.migrateLabels" -}}
app.kubernetes.io/name: {{ include "dispatcher.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: migrate
{{- end -}}

{{/* Labels of an object: (list $ more), where more are labels of its own. */}}
{{- define "dispatcher.labels" -}}
{{- $root := index . 0 -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/name" (include "dispatcher.name" $root)
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- merge dict $own (index . 1) $root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* The metadata of an object: (list $ "suffix"), and perhaps labels of its own. */}}
{{- define "dispatcher.metadata" -}}
{{- $root := index . 0 -}}
name: {{ printf "%s%s" (include "dispatcher.fullname" $root) (index . 1) | quote }}
namespace: {{ $root.Release.Namespace | quote }}
labels:
  {{- include "dispatcher.labels" (list $root (ternary (last .) dict (gt (len .) 2))) | nindent 2 }}
{{- end -}}

{{- define "dispatcher.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dispatcher.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "dispatcher.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A host name of a Service of ours: (list $ "suffix"). */}}
{{- define "dispatcher.host" -}}
{{- $root := index . 0 -}}
{{- printf "%s%s.%s.svc.%s" (include "dispatcher.fullname" $root) (index . 1) $root.Release.Namespace $root.Values.clusterDomain -}}
{{- end -}}

{{/* A value as text. YAML's numbers are floats, and 67108864 must not become 6.7108864e+07. */}}
{{- define "dispatcher.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) (float64 .)) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* "true" where the service's own scaler port is served. */}}
{{- define "dispatcher.hasScaler" -}}
{{- if and (eq .Values.autoscaling.mode "keda") (eq .Values.autoscaling.keda.trigger "external") -}}true{{- end -}}
{{- end -}}

{{/* The pod's and the container's security, by the restricted Pod Security Standard. */}}
{{- define "dispatcher.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.podSecurity }}
{{- if not (kindIs "invalid" .runAsUser) }}
runAsUser: {{ int64 .runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" .runAsGroup) }}
runAsGroup: {{ int64 .runAsGroup }}
{{- end }}
{{- if not (kindIs "invalid" .fsGroup) }}
fsGroup: {{ int64 .fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "dispatcher.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}
