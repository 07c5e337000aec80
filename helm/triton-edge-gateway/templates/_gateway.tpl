{{/* The gateway: its environment, volumes and container; the test pods have the first two as well. */}}

{{- define "edge-gateway.brokerCertificateSecret" -}}
{{- $auth := .Values.broker.auth -}}
{{- $auth.certManager.enabled | ternary (printf "%s-broker-client" (include "edge-gateway.fullname" .)) $auth.existingSecret }}
{{- end }}

{{- define "edge-gateway.hasBrokerCa" -}}
{{- or (not (empty .Values.broker.tls.caConfigMap)) (not (empty .Values.broker.tls.caSecret)) }}
{{- end }}

{{- define "edge-gateway.env" -}}
{{- $broker := .Values.broker -}}
{{- $secrets := "/run/secrets/edge-gateway" -}}
- name: GATEWAY_CONFIG
  value: /etc/edge-gateway/gateway.yaml
- name: GATEWAY_ID
  {{- if eq .Values.gateway.kind "Deployment" }}
  value: {{ include "edge-gateway.fullname" . }}
  {{- else }}
  valueFrom:
    fieldRef:
      fieldPath: {{ eq .Values.gateway.kind "DaemonSet" | ternary "spec.nodeName" "metadata.name" }}
  {{- end }}
- name: AIO_MQTT_CLIENT_ID
  value: {{ include "edge-gateway.clientId" . | quote }}
{{- if eq (include "edge-gateway.usesPodIndex" .) "true" }}
- name: POD_INDEX
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
{{- end }}
- name: BUSINESS_UNIT
  value: {{ .Values.site.businessUnit | quote }}
- name: FACILITY
  value: {{ .Values.site.facility | quote }}
- name: AIO_BROKER_HOSTNAME
  value: {{ $broker.host | quote }}
- name: AIO_BROKER_TCP_PORT
  value: {{ $broker.port | int64 | quote }}
- name: AIO_MQTT_USE_TLS
  value: {{ $broker.tls.enabled | quote }}
{{- if eq (include "edge-gateway.hasBrokerCa" .) "true" }}
- name: AIO_TLS_CA_FILE
  value: {{ printf "%s/broker-ca/%s" $secrets $broker.tls.caKey | quote }}
{{- end }}
{{- if eq $broker.auth.type "password" }}
- name: AIO_MQTT_USERNAME
  value: {{ $broker.auth.username | quote }}
- name: AIO_MQTT_PASSWORD_FILE
  value: {{ $secrets }}/broker-auth/{{ $broker.auth.passwordKey }}
{{- else if eq $broker.auth.type "certificate" }}
- name: AIO_TLS_CERT_FILE
  value: {{ $secrets }}/broker-auth/tls.crt
- name: AIO_TLS_KEY_FILE
  value: {{ $secrets }}/broker-auth/tls.key
{{- else if eq $broker.auth.type "serviceAccountToken" }}
- name: AIO_SAT_FILE
  value: {{ $secrets }}/broker-auth/token
{{- end }}
- name: AIO_MQTT_SESSION_EXPIRY
  value: {{ include "edge-gateway.sessionExpiry" . | quote }}
- name: MQTT_INPUT_TOPICS
  value: {{ include "edge-gateway.inputTopics" . | quote }}
{{- if eq (include "edge-gateway.leaves" .) "true" }}
- name: MQTT_LEAVE_GROUP
  value: "true"
{{- end }}
- name: TRITON_GRPC_URL
  value: {{ include "edge-gateway.tritonEndpoints" . | quote }}
{{- with include "edge-gateway.tritonMetrics" . }}
- name: TRITON_METRICS_URL
  value: {{ . | quote }}
{{- end }}
{{- with include "edge-gateway.tritonPlacement" . }}
- name: TRITON_PLACEMENT
  value: {{ . | quote }}
{{- end }}
- name: TRITON_SHARED_MEMORY
  value: {{ eq .Values.mode "colocated" | ternary "auto" "off" | quote }}
{{- if and .Values.triton.enabled (not .Values.triton.pools) }}
- name: GPU_ENABLED
  value: {{ eq .Values.triton.device "gpu" | quote }}
{{- end }}
{{- if and (not .Values.triton.enabled) .Values.triton.external.tls }}
- name: TRITON_USE_TLS
  value: "true"
{{- if .Values.triton.external.tlsSecret }}
- name: TRITON_TLS_CA_FILE
  value: {{ $secrets }}/triton/ca.crt
{{- if .Values.triton.external.tlsClientCertificate }}
- name: TRITON_TLS_CERT_FILE
  value: {{ $secrets }}/triton/tls.crt
- name: TRITON_TLS_KEY_FILE
  value: {{ $secrets }}/triton/tls.key
{{- end }}
{{- end }}
{{- end }}
- name: MODEL_REPOSITORY
  value: /models
- name: MODEL_STATE_DIR
  value: /models/.edge-gateway
- name: DROP_WATCH
  value: {{ .Values.models.dropWatch }}
{{- with .Values.models.signature }}
{{- if .publicKey }}
- name: MODEL_PUBLIC_KEY_FILE
  value: {{ $secrets }}/signature/{{ .publicKey }}
{{- else if .certificate }}
- name: MODEL_CERTIFICATE_FILE
  value: {{ $secrets }}/signature/{{ .certificate }}
{{- end }}
{{- end }}
- name: ROLLOUT_LEASE
  value: {{ include "edge-gateway.lease" . }}
- name: ROLLOUT_LEASE_NAME
  value: {{ include "edge-gateway.leaseName" . | quote }}
{{- if .Values.gateway.spool.enabled }}
- name: SPOOL_DIR
  value: /var/lib/edge-gateway/spool
{{- end }}
{{- with .Values.gateway.tokens }}
{{- if and .existingSecret .commandKey }}
- name: API_TOKEN_FILE
  value: {{ $secrets }}/api/{{ .commandKey }}
{{- end }}
{{- if and .existingSecret .readKey }}
- name: API_READ_TOKEN_FILE
  value: {{ $secrets }}/api/{{ .readKey }}
{{- end }}
{{- end }}
- name: DRAIN_TIMEOUT_S
  value: {{ .Values.gateway.drainTimeoutSeconds | quote }}
- name: HTTP_PORT
  value: "8080"
{{- with .Values.gateway.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "edge-gateway.mounts" -}}
{{- $secrets := "/run/secrets/edge-gateway" -}}
- name: config
  mountPath: /etc/edge-gateway
  readOnly: true
- name: models
  mountPath: /models
- name: data
  mountPath: /var/lib/edge-gateway
- name: tmp
  mountPath: /tmp
{{- if eq (include "edge-gateway.hasBrokerCa" .) "true" }}
- name: broker-ca
  mountPath: {{ $secrets }}/broker-ca
  readOnly: true
{{- end }}
{{- if ne .Values.broker.auth.type "none" }}
- name: broker-auth
  mountPath: {{ $secrets }}/broker-auth
  readOnly: true
{{- end }}
{{- if and (not .Values.triton.enabled) .Values.triton.external.tlsSecret }}
- name: triton-tls
  mountPath: {{ $secrets }}/triton
  readOnly: true
{{- end }}
{{- if .Values.models.signature.existingSecret }}
- name: signature
  mountPath: {{ $secrets }}/signature
  readOnly: true
{{- end }}
{{- if .Values.gateway.tokens.existingSecret }}
- name: api-tokens
  mountPath: {{ $secrets }}/api
  readOnly: true
{{- end }}
{{- if eq (include "edge-gateway.lease" .) "kubernetes" }}
- name: kube-api
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}
{{- with .Values.gateway.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Without `data`, which a StatefulSet may claim for each replica. */}}
{{- define "edge-gateway.volumes" -}}
{{- $broker := .Values.broker -}}
- name: config
  configMap:
    name: {{ include "edge-gateway.fullname" . }}
{{ include "edge-gateway.modelsVolume" . }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if $broker.tls.caConfigMap }}
- name: broker-ca
  configMap:
    name: {{ $broker.tls.caConfigMap | quote }}
{{- else if $broker.tls.caSecret }}
- name: broker-ca
  secret:
    secretName: {{ $broker.tls.caSecret | quote }}
    defaultMode: 0440
    items:
      - key: {{ $broker.tls.caKey | quote }}
        path: {{ $broker.tls.caKey | quote }}
{{- end }}
{{- if eq $broker.auth.type "serviceAccountToken" }}
- name: broker-auth
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ $broker.auth.audience | quote }}
          expirationSeconds: {{ $broker.auth.expirationSeconds | int64 }}
{{- else if ne $broker.auth.type "none" }}
- name: broker-auth
  secret:
    secretName: {{ eq $broker.auth.type "certificate" | ternary (include "edge-gateway.brokerCertificateSecret" .) $broker.auth.existingSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- if and (not .Values.triton.enabled) .Values.triton.external.tlsSecret }}
- name: triton-tls
  secret:
    secretName: {{ .Values.triton.external.tlsSecret | quote }}
    defaultMode: 0440
{{- end }}
{{- with .Values.models.signature.existingSecret }}
- name: signature
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- with .Values.gateway.tokens.existingSecret }}
- name: api-tokens
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- if eq (include "edge-gateway.lease" .) "kubernetes" }}
{{- /* In the gateway alone, where an automatic mount would give the token to Triton as well. */}}
- name: kube-api
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}
{{- with .Values.gateway.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "edge-gateway.container" -}}
name: gateway
image: {{ include "edge-gateway.gatewayImage" . }}
imagePullPolicy: {{ .Values.gateway.image.pullPolicy }}
args: [serve]
env:
  {{- include "edge-gateway.env" . | nindent 2 }}
ports:
  - name: http
    containerPort: 8080
{{- /* Not /startup, which waits for broker, Triton and a model: a new process would wait for them no shorter. */}}
startupProbe:
  httpGet:
    path: /live
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ div (add .Values.gateway.startupTimeoutSeconds 4) 5 }}
livenessProbe:
  httpGet:
    path: /live
    port: http
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /ready
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
resources:
  {{- include "edge-gateway.resources" .Values.gateway.resources | nindent 2 }}
{{ include "edge-gateway.containerSecurity" . }}
volumeMounts:
  {{- include "edge-gateway.mounts" . | nindent 2 }}
  {{- if eq .Values.mode "colocated" }}
  - name: shared-memory
    mountPath: /dev/shm
  {{- end }}
{{- end }}
