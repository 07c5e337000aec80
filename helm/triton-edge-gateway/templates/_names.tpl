{{/* Names, labels and images. A StatefulSet's name may have 52 letters, since a label of its pods adds a hash to it: 32 for
     the release, 8 for "-triton-" and 12 for a pool. */}}

{{- define "edge-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride }}
{{- end }}

{{- define "edge-gateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride }}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- /* What is cut off still tells two releases apart. */}}
{{- gt (len $full) 32 | ternary (printf "%s-%s" (trunc 26 $full | trimSuffix "-") (sha256sum $full | trunc 5)) $full }}
{{- end }}
{{- end }}

{{/* What selects pods of one component: (dict "root" $ "component" "gateway"). */}}
{{- define "edge-gateway.selector" -}}
app.kubernetes.io/name: {{ include "edge-gateway.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "edge-gateway.labels" -}}
{{ include "edge-gateway.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: triton-edge-gateway
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods: without versions, so that a new chart alone restarts nobody. */}}
{{- define "edge-gateway.podLabels" -}}
{{ include "edge-gateway.selector" . }}
app.kubernetes.io/part-of: triton-edge-gateway
{{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The metadata of an object: (dict "root" $ "component" "gateway" "name" "..." ["labels" map] ["annotations" map]). */}}
{{- define "edge-gateway.metadata" -}}
metadata:
  name: {{ .name | quote }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  labels:
    {{- include "edge-gateway.labels" . | nindent 4 }}
  {{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* An image with the registry of a closed site in place of its own: (dict "root" $ "reference" "..."). */}}
{{- define "edge-gateway.reference" -}}
{{- if .root.Values.imageRegistry -}}
{{- $first := splitList "/" .reference | first -}}
{{- $path := (and (contains "/" .reference) (regexMatch "[.:]|^localhost$" $first)) | ternary (trimPrefix (printf "%s/" $first) .reference) .reference -}}
{{- printf "%s/%s" (trimSuffix "/" .root.Values.imageRegistry) $path }}
{{- else -}}
{{- .reference }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "image" values "repository" default "tag" default). */}}
{{- define "edge-gateway.image" -}}
{{- $repository := .image.repository | default .repository -}}
{{- $version := .image.digest | empty | ternary (printf ":%s" (.image.tag | default .tag)) (printf "@%s" .image.digest) -}}
{{- include "edge-gateway.reference" (dict "root" .root "reference" (printf "%s%s" $repository $version)) }}
{{- end }}

{{- define "edge-gateway.gatewayImage" -}}
{{- include "edge-gateway.image" (dict "root" . "image" .Values.gateway.image "repository" "triton-edge-gateway" "tag" .Chart.AppVersion) }}
{{- end }}

{{- define "edge-gateway.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "edge-gateway.fullname" .) "default") }}
{{- end }}
