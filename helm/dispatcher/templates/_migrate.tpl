{{/* The pod of a migration's Job, and the Job's name. */}}

{{/* A Job can't be changed nor started again, so all that it does is in its name, and each release of helm has one of its
     own: one that failed is not left as it is. Where nothing counts releases (`helm template`), a changed value or
     secrets.revision makes another. A hook's is deleted before the next. */}}
{{- define "dispatcher.migrateSuffix" -}}
{{- if eq .Values.migrations.mode "hook" -}}
-migrate
{{- else -}}
{{- $what := list (include "dispatcher.migratePod" .) .Release.Revision .Values.secrets.revision .Values.migrations -}}
-migrate-{{ $what | toJson | sha256sum | trunc 8 }}
{{- end -}}
{{- end -}}

{{- define "dispatcher.migratePod" -}}
{{- $selected := include "dispatcher.migrateLabels" . | fromYaml -}}
{{- $mesh := include "dispatcher.jobMeshLabels" . | fromYaml -}}
metadata:
  labels:
    {{- merge dict $selected $mesh .Values.podLabels .Values.commonLabels | toYaml | nindent 4 }}
  {{- with include "dispatcher.jobMeshAnnotations" . | trim }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  {{- /* A failed pod stays with its log; with OnFailure the last one goes when the Job gives up. */}}
  restartPolicy: Never
  {{- /* A hook runs before our ServiceAccount is there. */}}
  {{- if eq .Values.migrations.mode "job" }}
  serviceAccountName: {{ include "dispatcher.serviceAccountName" . | quote }}
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
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
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
