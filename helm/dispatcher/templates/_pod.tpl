{{/* The pod that serves. */}}

{{- define "dispatcher.podSpec" -}}
serviceAccountName: {{ include "dispatcher.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "dispatcher.graceSeconds" . }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  {{- include "dispatcher.podSecurityContext" . | nindent 2 }}
{{- if eq .Values.migrations.mode "initContainer" }}
initContainers:
  - {{ include "dispatcher.migrateContainer" . | indent 4 | trim }}
{{- end }}
containers:
  - {{ include "dispatcher.container" . | indent 4 | trim }}
volumes:
  {{- include "dispatcher.volumes" . | nindent 2 }}
{{- include "dispatcher.placement" . }}
{{- end -}}

{{- define "dispatcher.container" -}}
name: dispatcher
image: {{ include "dispatcher.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
envFrom:
  - configMapRef:
      name: {{ include "dispatcher.fullname" . | quote }}
env:
  {{- include "dispatcher.podEnv" . | nindent 2 }}
  {{- include "dispatcher.secretEnv" (list . "") | trim | nindent 2 }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - {name: grpc, containerPort: 50051, protocol: TCP}
  {{- if .Values.adminService.enabled }}
  - {name: grpc-admin, containerPort: 50052, protocol: TCP}
  {{- end }}
  {{- if include "dispatcher.hasScaler" . }}
  - {name: grpc-scaler, containerPort: 50053, protocol: TCP}
  {{- end }}
  - {name: http-ops, containerPort: 8080, protocol: TCP}
{{- include "dispatcher.probes" . }}
lifecycle:
  preStop:
    {{- include "dispatcher.preStop" . | nindent 4 }}
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "dispatcher.securityContext" . | nindent 2 }}
volumeMounts:
  - name: secrets
    mountPath: /etc/dispatcher/secrets
    readOnly: true
  {{- if include "dispatcher.accessSources" . | trim }}
  - name: access
    mountPath: /etc/dispatcher/access
    readOnly: true
  {{- end }}
  {{- if .Values.tls.secretName }}
  - name: tls
    mountPath: /etc/dispatcher/tls
    readOnly: true
  {{- end }}
  - name: tmp
    mountPath: /tmp
{{- end -}}

{{- define "dispatcher.probes" }}
startupProbe:
  httpGet: {path: /livez, port: http-ops}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ divf .Values.probes.startupSeconds 2 | ceil | int64 }}
livenessProbe:
  httpGet: {path: /livez, port: http-ops}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: {{ divf .Values.probes.livenessSeconds 10 | ceil | int64 }}
readinessProbe:
  {{- if eq .Values.probes.readiness "grpc" }}
  grpc: {port: 50051}
  {{- else }}
  httpGet: {path: /readyz, port: http-ops}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{/* Sources of the volume with policy and public keys. */}}
{{- define "dispatcher.accessSources" -}}
{{- if include "dispatcher.accessFiles" . | trim }}
- configMap:
    name: {{ include "dispatcher.fullname" . }}-access
{{- end }}
{{- with .Values.auth.policyConfigMap }}
- configMap:
    name: {{ . | quote }}
    items:
      - {key: policy.yaml, path: policy.yaml}
{{- end }}
{{- end -}}

{{/* Whole folders, never a subPath: only so does a changed Secret reach a running process. */}}
{{- define "dispatcher.volumes" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- include "dispatcher.secretSources" (list . "") | trim | nindent 6 }}
{{- with include "dispatcher.accessSources" . | trim }}
- name: access
  projected:
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- if .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secretName | quote }}
    defaultMode: 0440
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end -}}

{{- define "dispatcher.placement" -}}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | indent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "dispatcher.selectorLabels" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
