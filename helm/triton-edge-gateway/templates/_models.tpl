{{/* The volume of the models, and what brings drops to it. */}}

{{- define "edge-gateway.modelsClaim" -}}
{{- .Values.models.volume.existingClaim | default (printf "%s-models" (include "edge-gateway.fullname" .)) }}
{{- end }}

{{- define "edge-gateway.modelsVolume" -}}
- name: models
  {{- if eq .Values.models.volume.type "emptyDir" }}
  emptyDir:
    sizeLimit: {{ .Values.models.volume.size | quote }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "edge-gateway.modelsClaim" . | quote }}
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
{{- with $download.noProxy }}
- name: NO_PROXY
  value: {{ . | quote }}
{{- end }}
{{- if $download.caConfigMap }}
- name: SSL_CERT_FILE
  value: /run/secrets/edge-gateway/download-ca/ca.crt
{{- end }}
{{- with .Values.gateway.settings.max_model_bytes }}
- name: MAX_MODEL_BYTES
  value: {{ int64 . | quote }}
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

{{/* The port of "host", "host:port" or an IPv6 address in brackets: (dict "host" "..." "default" port). */}}
{{- define "edge-gateway.portOf" -}}
{{- regexFind ":[0-9]+$" .host | trimPrefix ":" | default .default }}
{{- end }}

{{/* The ports on which downloads are reached, in YAML: those of the sources and of the proxy, and further ones. */}}
{{- define "edge-gateway.downloadPorts" -}}
{{- $ports := list -}}
{{- $urls := list -}}
{{- with .Values.models.download.proxy }}{{- $urls = append $urls . }}{{- end -}}
{{- range .Values.models.download.sources -}}
{{- if .oci -}}
{{- $ports = append $ports (include "edge-gateway.portOf" (dict "host" (splitList "/" .oci.reference | first) "default" 443) | int) -}}
{{- else if .s3 -}}
{{- $urls = append $urls (.s3.endpoint | default "https://s3") -}}
{{- else -}}
{{- $urls = append $urls .url -}}
{{- end -}}
{{- end -}}
{{- range $urls -}}
{{- $ports = append $ports (include "edge-gateway.portOf" (dict "host" (urlParse .).host "default" (hasPrefix "https:" . | ternary 443 80)) | int) -}}
{{- end -}}
{{- range .Values.networkPolicy.downloadPorts }}{{- $ports = append $ports (int .) }}{{- end -}}
{{- $ports | uniq | sortAlpha | toYaml }}
{{- end }}

{{/* One step that uses the gateway's image: (dict "root" $ "name" "..." ["command" list] "args" list). */}}
{{- define "edge-gateway.fetchingStep" -}}
- name: {{ .name }}
  image: {{ include "edge-gateway.gatewayImage" .root | quote }}
  imagePullPolicy: {{ .root.Values.gateway.image.pullPolicy }}
  {{- with .command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  args:
    {{- toYaml .args | nindent 4 }}
  env:
    {{- include "edge-gateway.downloadEnv" .root | nindent 4 }}
  resources:
    {{- include "edge-gateway.resources" .root.Values.models.download.resources | nindent 4 }}
  {{- include "edge-gateway.containerSecurity" .root | nindent 2 }}
  volumeMounts:
    {{- include "edge-gateway.downloadMounts" .root | nindent 4 }}
    - name: models
      mountPath: /models
{{- end }}

{{/* The steps in YAML, in order: for each source that needs a tool of its own, whether the drop is on the volume already, and
     if not, what brings it into /tmp; then `edge-gateway models fetch`, which verifies the digest and unpacks it. A step
     that is done again without its server finds what is there and ends well. */}}
{{- define "edge-gateway.downloadSteps" -}}
{{- $root := . -}}
{{- $download := .Values.models.download -}}
{{- range $download.sources }}
{{- $place := .url }}
{{- if not .url }}
{{- $place = printf "/tmp/archive/%s" (.oci | empty | ternary "drop" (get (.oci | default dict) "file")) }}
{{- end }}
{{- $fetch := list "models" "fetch" $place (printf "--sha256=%s" .sha256) "--repository=/models" }}
{{- if not .url }}
{{ include "edge-gateway.fetchingStep" (dict "root" $root "name" (printf "look-%s" .name)
      "command" (list "python3" "-c" ($root.Files.Get "scripts/look.py")) "args" $fetch) }}
- name: pull-{{ .name }}
  image: {{ include "edge-gateway.reference" (dict "root" $root "reference" (.oci | empty | ternary $download.rcloneImage $download.orasImage)) | quote }}
  imagePullPolicy: IfNotPresent
  command:
    - sh
    - -c
    # The archive of the source before goes first, so that there is room for one.
    - 'rm -rf /tmp/archive; if [ -e /tmp/there ]; then echo "The drop is there already"; exit 0; fi; exec "$0" "$@"'
  args:
    {{- if .oci }}
    - oras
    - pull
    - --output=/tmp/archive
    {{- if $download.ociSecret }}
    - --registry-config=/run/secrets/edge-gateway/oci/.dockerconfigjson
    {{- end }}
    - {{ .oci.reference | quote }}
    {{- else }}
    - rclone
    - copyto
    - {{ printf ":s3:%s/%s" .s3.bucket .s3.key | quote }}
    - {{ $place }}
    {{- end }}
  env:
    {{- include "edge-gateway.downloadEnv" $root | nindent 4 }}
    {{- if .s3 }}
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
          name: {{ $download.s3Secret | quote }}
          key: {{ . }}
    {{- end }}
    {{- end }}
  resources:
    {{- include "edge-gateway.resources" $download.resources | nindent 4 }}
  {{- include "edge-gateway.containerSecurity" $root | nindent 2 }}
  volumeMounts:
    {{- include "edge-gateway.downloadMounts" $root | nindent 4 }}
    {{- if and .oci $download.ociSecret }}
    - name: download-oci
      mountPath: /run/secrets/edge-gateway/oci
      readOnly: true
    {{- end }}
{{- end }}
{{ include "edge-gateway.fetchingStep" (dict "root" $root "name" (printf "fetch-%s" .name) "args" $fetch) }}
{{- end }}
{{- end }}

{{- define "edge-gateway.downloadVolumes" -}}
- name: scratch
  emptyDir:
    sizeLimit: {{ .Values.models.download.scratchSize | quote }}
{{- with .Values.models.download.caConfigMap }}
- name: download-ca
  configMap:
    name: {{ . | quote }}
{{- end }}
{{- with .Values.models.download.ociSecret }}
- name: download-oci
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* All of the Job that Kubernetes lets nobody change. */}}
{{- define "edge-gateway.downloadPod" -}}
{{- $steps := include "edge-gateway.downloadSteps" . | fromYamlArray -}}
metadata:
  labels:
    {{- include "edge-gateway.podLabels" (dict "root" . "component" "download") | nindent 4 }}
spec:
  restartPolicy: OnFailure
  serviceAccountName: {{ include "edge-gateway.serviceAccountName" . | quote }}
  {{- include "edge-gateway.podSecurity" . | nindent 2 }}
  {{- /* A volume of one node is made where its first pod runs: that must not be this one, which needs no GPU. */}}
  {{- include "edge-gateway.helperPlace" (dict "root" . "beside" (not (has "ReadWriteMany" .Values.models.volume.accessModes))) | nindent 2 }}
  {{- with initial $steps }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    {{- toYaml (list (last $steps)) | nindent 4 }}
  volumes:
    {{- include "edge-gateway.modelsVolume" . | nindent 4 }}
    {{- include "edge-gateway.downloadVolumes" . | nindent 4 }}
{{- end }}
