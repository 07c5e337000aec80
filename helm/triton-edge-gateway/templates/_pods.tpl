{{/* What all pods have in common; the pod security standard "restricted" and more. */}}

{{- define "edge-gateway.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.security.runAsUser | int64 }}
  runAsGroup: {{ .Values.security.runAsGroup | int64 }}
  fsGroup: {{ .Values.security.fsGroup | int64 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "edge-gateway.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  privileged: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
{{- end }}

{{/* Where pods run: (dict "root" $ "place" values "component" "..." ["pool" "..."]). */}}
{{- define "edge-gateway.placement" -}}
{{- $selector := include "edge-gateway.selector" . | fromYaml }}
{{- with .pool }}{{- $_ := set $selector "triton-edge-gateway/pool" . }}{{- end }}
{{- with .place.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .place.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .place.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .place.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .place.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not .everywhere }}
topologySpreadConstraints:
  {{- range .place.topologySpreadConstraints | default (list (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway")) }}
  - {{ merge (dict) . (dict "labelSelector" (dict "matchLabels" $selector)) | toYaml | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Seconds that a pod with a gateway may take to end: the drain, then the goodbyes to clients and broker. */}}
{{- define "edge-gateway.graceSeconds" -}}
{{- add (ceil .Values.gateway.drainTimeoutSeconds) 20 }}
{{- end }}
