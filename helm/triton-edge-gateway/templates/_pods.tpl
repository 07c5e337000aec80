{{/* What all pods have in common; the pod security standard "restricted" and more. */}}

{{- define "edge-gateway.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
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
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .place.priorityClassName }}
priorityClassName: {{ . | quote }}
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

{{/* Requests are the limits, where they are not given. */}}
{{- define "edge-gateway.resources" -}}
limits:
  {{- toYaml .limits | nindent 2 }}
requests:
  {{- mergeOverwrite (dict) (deepCopy .limits) (.requests | default dict) | toYaml | nindent 2 }}
{{- end }}

{{/* Whether the volume of the models keeps all pods on one node: Triton decides which. A claim of another's is not known. */}}
{{- define "edge-gateway.oneNode" -}}
{{- $volume := .Values.models.volume -}}
{{- $claimed := and (eq $volume.type "persistentVolumeClaim") (not $volume.existingClaim) (not (has "ReadWriteMany" $volume.accessModes)) -}}
{{- or $claimed (eq $volume.type "hostPath") }}
{{- end }}

{{/* Affinity in YAML: the given one, and beside the pods of a component: (dict "root" $ "affinity" map "component" "..."). */}}
{{- define "edge-gateway.beside" -}}
{{- $affinity := deepCopy (.affinity | default dict) -}}
{{- $pods := get $affinity "podAffinity" | default dict -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $selector := include "edge-gateway.selector" (dict "root" .root "component" .component) | fromYaml -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $selector) -}}
{{- $_ := set $pods $key (append (get $pods $key | default list) $term) -}}
{{- $_ := set $affinity "podAffinity" $pods -}}
{{- toYaml $affinity }}
{{- end }}

{{/* Where gateways run, in YAML: as `gateway` says; in one pod with Triton, or bound to its node, as `triton` says too. */}}
{{- define "edge-gateway.gatewayPlace" -}}
{{- $place := pick .Values.gateway "priorityClassName" "nodeSelector" "affinity" "tolerations" "topologySpreadConstraints" | deepCopy -}}
{{- $colocated := eq .Values.mode "colocated" -}}
{{- $follows := and .Values.triton.enabled (not $colocated) (eq (include "edge-gateway.oneNode" .) "true") (eq .Values.triton.kind "StatefulSet") -}}
{{- if $colocated -}}
{{- $place = merge $place (pick .Values.triton "runtimeClassName" "priorityClassName" "nodeSelector" "affinity" | deepCopy) -}}
{{- $_ := set $place "topologySpreadConstraints" (concat $place.topologySpreadConstraints .Values.triton.topologySpreadConstraints) -}}
{{- end -}}
{{- if or $colocated $follows -}}
{{- $tolerations := concat $place.tolerations .Values.triton.tolerations -}}
{{- range .Values.triton.pools }}{{- $tolerations = concat $tolerations (.tolerations | default list) }}{{- end -}}
{{- $_ := set $place "tolerations" ($tolerations | uniq) -}}
{{- end -}}
{{- if $follows -}}
{{- $_ := set $place "affinity" (include "edge-gateway.beside" (dict "root" . "affinity" $place.affinity "component" "triton") | fromYaml) -}}
{{- end -}}
{{- toYaml $place }}
{{- end }}

{{/* Where pods run that help a gateway for a while: (dict "root" $ "beside" bool); beside one they see its volume. */}}
{{- define "edge-gateway.helperPlace" -}}
{{- $place := pick (include "edge-gateway.gatewayPlace" .root | fromYaml) "nodeSelector" "tolerations" -}}
{{- if .beside -}}
{{- $_ := set $place "affinity" (include "edge-gateway.beside" (dict "root" .root "component" "gateway") | fromYaml) -}}
{{- end -}}
{{- range $key, $value := $place }}
{{- with $value }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
