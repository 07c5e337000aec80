{{/* The volume of the models, and what brings drops to it. */}}

{{- define "edge-gateway.modelsClaim" -}}
{{- .Values.models.volume.existingClaim | default (printf "%s-models" (include "edge-gateway.fullname" .)) }}
{{- end }}

{{- define "edge-gateway.modelsVolume" -}}
- name: models
  {{- if eq .Values.models.volume.type "emptyDir" }}
  emptyDir:
    sizeLimit: {{ .Values.models.volume.size }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "edge-gateway.modelsClaim" . }}
  {{- end }}
{{- end }}

{{/* A Job serves a volume that all pods share; where each node or pod has its own, each pod looks after it. */}}
{{- define "edge-gateway.downloadsInPod" -}}
{{- and (not (empty .Values.models.download.sources)) (ne .Values.models.volume.type "persistentVolumeClaim") }}
{{- end }}

{{- define "edge-gateway.downloadsByJob" -}}
{{- and (not (empty .Values.models.download.sources)) (eq .Values.models.volume.type "persistentVolumeClaim") }}
{{- end }}

{{- define "edge-gateway.downloadEnv" -}}
{{- $download := .Values.models.download -}}
- name: HOME
  value: /tmp
{{- with $download.proxy }}
- name: HTTP_PROXY
  value: {{ . | quote }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
{{- end }}
{{- if $download.caConfigMap }}
- name: SSL_CERT_FILE
  value: /run/secrets/edge-gateway/download-ca/ca.crt
{{- end }}
{{- end }}

{{- define "edge-gateway.downloadMounts" -}}
- name: scratch
  mountPath: /tmp
{{- if .Values.models.download.caConfigMap }}
- name: download-ca
  mountPath: /run/secrets/edge-gateway/download-ca
  readOnly: true
{{- end }}
{{- end }}

{{/* The steps in YAML, in order: for each source what brings it into /tmp, where a tool of its own does that; then
     `edge-gateway models fetch`, which verifies the digest and unpacks it onto the volume. */}}
{{- define "edge-gateway.downloadSteps" -}}
{{- $root := . -}}
{{- $download := .Values.models.download -}}
{{- range $download.sources }}
{{- $place := .url }}
{{- if .oci }}
{{- $place = printf "/tmp/%s/%s" .name .oci.file }}
- name: pull-{{ .name }}
  image: {{ include "edge-gateway.reference" (dict "root" $root "reference" $download.orasImage) }}
  imagePullPolicy: IfNotPresent
  args:
    - pull
    - --output=/tmp/{{ .name }}
    {{- if $download.ociSecret }}
    - --registry-config=/run/secrets/edge-gateway/oci/.dockerconfigjson
    {{- end }}
    - {{ .oci.reference | quote }}
  env:
    {{- include "edge-gateway.downloadEnv" $root | nindent 4 }}
  resources:
    {{- toYaml $download.resources | nindent 4 }}
  {{- include "edge-gateway.containerSecurity" $root | nindent 2 }}
  volumeMounts:
    {{- include "edge-gateway.downloadMounts" $root | nindent 4 }}
    {{- if $download.ociSecret }}
    - name: download-oci
      mountPath: /run/secrets/edge-gateway/oci
      readOnly: true
    {{- end }}
{{- else if .s3 }}
{{- $place = printf "/tmp/%s.archive" .name }}
- name: pull-{{ .name }}
  image: {{ include "edge-gateway.reference" (dict "root" $root "reference" $download.rcloneImage) }}
  imagePullPolicy: IfNotPresent
  args:
    - copyto
    - {{ printf ":s3:%s/%s" .s3.bucket .s3.key | quote }}
    - {{ $place }}
  env:
    {{- include "edge-gateway.downloadEnv" $root | nindent 4 }}
    - name: RCLONE_CONFIG
      value: /tmp/rclone.conf
    - name: RCLONE_S3_PROVIDER
      value: {{ .s3.endpoint | empty | ternary "AWS" "Other" }}
    - name: RCLONE_S3_ENV_AUTH
      value: "true"
    {{- with .s3.endpoint }}
    - name: RCLONE_S3_ENDPOINT
      value: {{ . | quote }}
    {{- end }}
    {{- with .s3.region }}
    - name: RCLONE_S3_REGION
      value: {{ . | quote }}
    {{- end }}
    {{- range $download.s3Secret | empty | ternary list (list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY") }}
    - name: {{ . }}
      valueFrom:
        secretKeyRef:
          name: {{ $download.s3Secret }}
          key: {{ . }}
    {{- end }}
  resources:
    {{- toYaml $download.resources | nindent 4 }}
  {{- include "edge-gateway.containerSecurity" $root | nindent 2 }}
  volumeMounts:
    {{- include "edge-gateway.downloadMounts" $root | nindent 4 }}
{{- end }}
- name: fetch-{{ .name }}
  image: {{ include "edge-gateway.gatewayImage" $root }}
  imagePullPolicy: {{ $root.Values.gateway.image.pullPolicy }}
  args:
    - models
    - fetch
    - {{ $place | quote }}
    - --sha256={{ .sha256 }}
    - --repository=/models
  env:
    {{- include "edge-gateway.downloadEnv" $root | nindent 4 }}
  resources:
    {{- toYaml $download.resources | nindent 4 }}
  {{- include "edge-gateway.containerSecurity" $root | nindent 2 }}
  volumeMounts:
    {{- include "edge-gateway.downloadMounts" $root | nindent 4 }}
    - name: models
      mountPath: /models
{{- end }}
{{- end }}

{{- define "edge-gateway.downloadVolumes" -}}
- name: scratch
  emptyDir:
    sizeLimit: {{ .Values.models.download.scratchSize }}
{{- with .Values.models.download.caConfigMap }}
- name: download-ca
  configMap:
    name: {{ . }}
{{- end }}
{{- with .Values.models.download.ociSecret }}
- name: download-oci
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
