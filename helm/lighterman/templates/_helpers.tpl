{{/* Names and labels. */}}
{{- define "lighterman.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "lighterman.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "lighterman.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lighterman.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "lighterman.selector" -}}
app.kubernetes.io/name: {{ include "lighterman.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "lighterman.labels" -}}
{{ include "lighterman.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lighterman.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lighterman.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "lighterman.claim" -}}
{{- default (printf "%s-data" (include "lighterman.fullname" .)) .Values.persistence.existingClaim -}}
{{- end }}

{{- define "lighterman.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{/* Where the Service is found in the cluster. */}}
{{- define "lighterman.host" -}}
{{- printf "%s.%s.svc" (include "lighterman.fullname" .) .Release.Namespace -}}
{{- end }}

{{/* What the pod security standard "restricted" asks of a pod, and of a container. */}}
{{- define "lighterman.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.user.uid }}
runAsGroup: {{ .Values.user.gid }}
fsGroup: {{ .Values.user.gid }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "lighterman.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What every pod here has: no token, no variables of other Services (they begin like ours). */}}
{{- define "lighterman.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- include "lighterman.podSecurity" . | nindent 2 }}
{{- end }}

{{/* Where a pod may run; given .Values, or .Values.workers. */}}
{{- define "lighterman.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "lighterman.container" -}}
image: {{ include "lighterman.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "lighterman.containerSecurity" . | nindent 2 }}
{{- end }}

{{- define "lighterman.databaseEnv" -}}
{{- with .Values.database }}
{{- if .existingSecret }}
- name: LIGHTERMAN_DATABASE
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}

{{/* Ways out of a pod that uses the database: names, and the database itself. */}}
{{- define "lighterman.databaseEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- if .Values.database.existingSecret }}
- ports:
    - {port: {{ .Values.networkPolicy.databasePort }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* TOML: a JSON string, number, bool or list of strings is one of TOML too. Tables come last. */}}
{{- define "lighterman.toml" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := . }}
{{- if kindIs "map" $value }}

[{{ $key }}]
{{- range $inner, $given := $value }}
{{ $inner }} = {{ toJson $given }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
