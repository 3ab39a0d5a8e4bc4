{{/* The pod of a migration's Job. */}}

{{- define "dispatcher.migratePod" -}}
metadata:
  labels:
    {{- include "dispatcher.migrateLabels" . | nindent 4 }}
    {{- with include "dispatcher.jobMeshLabels" . }}
    {{- . | nindent 4 }}
    {{- end }}
  {{- with include "dispatcher.jobMeshAnnotations" . | trim }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: OnFailure
  {{- /* A hook runs before our ServiceAccount is there. */}}
  {{- if eq .Values.migrations.mode "job" }}
  serviceAccountName: {{ include "dispatcher.serviceAccountName" . }}
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "dispatcher.podSecurityContext" . | nindent 4 }}
  containers:
    - {{ include "dispatcher.migrateContainer" . | indent 6 | trim }}
  volumes:
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- include "dispatcher.secretSources" (list . "database-") | trim | nindent 10 }}
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
