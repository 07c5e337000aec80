{{/* Triton: its pools, their endpoints, its container. */}}

{{/* The pools in YAML by name, each with everything that holds for it; one without a name where none is given. */}}
{{- define "edge-gateway.pools" -}}
{{- $usual := pick .Values.triton "replicas" "device" "image" "gpu" "resources" "extraArgs" "runtimeClassName" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" -}}
{{- $pools := dict -}}
{{- range $name, $given := (.Values.triton.pools | default (dict "" (dict))) -}}
{{- $pool := deepCopy $usual -}}
{{- /* An image is of one device; and a digest that comes from above would win over a tag that is given here. */}}
{{- $image := get $given "image" | default dict -}}
{{- if ne ($given.device | default $usual.device) $usual.device -}}
{{- $_ := set $pool "image" (dict "repository" "" "tag" "" "digest" "" "pullPolicy" $usual.image.pullPolicy) -}}
{{- else if or $image.repository $image.tag -}}
{{- $_ := set $pool.image "digest" "" -}}
{{- end -}}
{{- range $key, $value := $given -}}
{{- if has $key (list "image" "gpu" "resources") -}}
{{- $_ := set $pool $key (mergeOverwrite (dict) (get $pool $key) $value) -}}
{{- else -}}
{{- $_ := set $pool $key $value -}}
{{- end -}}
{{- end -}}
{{- $_ := set $pools $name $pool -}}
{{- end -}}
{{- toYaml $pools }}
{{- end }}

{{- define "edge-gateway.tritonName" -}}
{{- printf "%s-triton" (include "edge-gateway.fullname" .) }}
{{- end }}

{{/* Kubernetes gives no Service another address, so each kind has its own. */}}
{{- define "edge-gateway.tritonService" -}}
{{- printf "%s%s" (include "edge-gateway.tritonName" .) (eq .Values.triton.kind "DaemonSet" | ternary "-local" "") }}
{{- end }}

{{- define "edge-gateway.poolName" -}}
{{- printf "%s%s" (include "edge-gateway.tritonName" .root) (.pool | empty | ternary "" (printf "-%s" .pool)) }}
{{- end }}

{{/* Hosts of Triton in YAML by pool; stable names, so that the gateway knows each server. */}}
{{- define "edge-gateway.tritonHosts" -}}
{{- $hosts := dict -}}
{{- $service := printf "%s.%s.svc.%s" (include "edge-gateway.tritonService" .) .Release.Namespace .Values.clusterDomain -}}
{{- if eq .Values.mode "colocated" -}}
{{- $hosts = dict "" (list "localhost") -}}
{{- else if eq .Values.triton.kind "DaemonSet" -}}
{{- $hosts = dict "" (list $service) -}}
{{- else -}}
{{- range $name, $pool := include "edge-gateway.pools" . | fromYaml -}}
{{- $of := list -}}
{{- range $number := until (int $pool.replicas) -}}
{{- $of = append $of (printf "%s-%d.%s" (include "edge-gateway.poolName" (dict "root" $ "pool" $name)) $number $service) -}}
{{- end -}}
{{- $_ := set $hosts $name $of -}}
{{- end -}}
{{- end -}}
{{- toYaml $hosts }}
{{- end }}

{{- define "edge-gateway.tritonEndpoints" -}}
{{- $endpoints := .Values.triton.external.endpoints -}}
{{- if .Values.triton.enabled -}}
{{- $endpoints = list -}}
{{- range $name, $hosts := include "edge-gateway.tritonHosts" . | fromYaml -}}
{{- range $hosts }}{{- $endpoints = append $endpoints (printf "%s:8001" .) }}{{- end -}}
{{- end -}}
{{- end -}}
{{- join "," $endpoints }}
{{- end }}

{{- define "edge-gateway.tritonMetrics" -}}
{{- $pages := .Values.triton.external.metricsUrls -}}
{{- if .Values.triton.enabled -}}
{{- $pages = list -}}
{{- range $name, $hosts := include "edge-gateway.tritonHosts" . | fromYaml -}}
{{- range $hosts }}{{- $pages = append $pages (printf "http://%s:8002/metrics" .) }}{{- end -}}
{{- end -}}
{{- end -}}
{{- join "," $pages }}
{{- end }}

{{- define "edge-gateway.tritonPlacement" -}}
{{- $hosts := include "edge-gateway.tritonHosts" . | fromYaml -}}
{{- $rules := list -}}
{{- range .Values.triton.placement -}}
{{- $endpoints := list -}}
{{- range .pools -}}
{{- if not (hasKey $hosts .) }}{{- fail (printf "triton.placement names the pool '%s', which triton.pools does not have" .) }}{{- end -}}
{{- range get $hosts . }}{{- $endpoints = append $endpoints (printf "%s:8001" .) }}{{- end -}}
{{- end -}}
{{- $key := list (printf "model=%s" .model) -}}
{{- with .version }}{{- $key = append $key (printf "version=%s" .) }}{{- end -}}
{{- with .tenant }}{{- $key = append $key (printf "tenant=%s" .) }}{{- end -}}
{{- $rules = append $rules (printf "%s -> %s" (join "," $key) (join "|" $endpoints)) -}}
{{- end -}}
{{- join "; " $rules }}
{{- end }}

{{- define "edge-gateway.tritonImage" -}}
{{- $gpu := eq .pool.device "gpu" -}}
{{- include "edge-gateway.image" (dict "root" .root "image" .pool.image
      "repository" ($gpu | ternary "nvcr.io/nvidia/tritonserver" "triton-edge-gateway-triton-cpu")
      "tag" ($gpu | ternary .root.Values.triton.gpuTag .root.Chart.AppVersion)) }}
{{- end }}

{{/* Whether the tag says that release or a later one: (dict "root" $ "pool" pool "release" number "unknown" bool). */}}
{{- define "edge-gateway.atLeast" -}}
{{- $tag := .pool.image.tag | default (eq .pool.device "gpu" | ternary .root.Values.triton.gpuTag "") -}}
{{- $release := regexFind "^[0-9]{2}\\.[0-9]{2}" $tag -}}
{{- $release | empty | ternary .unknown (ge ($release | default "0" | float64) .release) }}
{{- end }}

{{/* From 26.05 on Triton wants to be told; earlier ones do not start with the argument. */}}
{{- define "edge-gateway.allowsSharedMemory" -}}
{{- $wish := .root.Values.triton.allowClientSharedMemory -}}
{{- if eq $wish "auto" -}}
{{- and (eq .pool.device "gpu") (eq (include "edge-gateway.atLeast" (merge (dict "release" 26.05 "unknown" false) .)) "true") }}
{{- else -}}
{{- $wish }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "pool" pool ["waitSeconds" seconds]); with these a gateway is beside it, and it ends only when that has. */}}
{{- define "edge-gateway.tritonContainer" -}}
{{- $triton := .root.Values.triton -}}
name: triton
image: {{ include "edge-gateway.tritonImage" . }}
imagePullPolicy: {{ .pool.image.pullPolicy }}
args:
  - tritonserver
  - --model-repository=/models
  - --model-control-mode=explicit
  - --strict-readiness=false
  - --http-thread-count=2
  - --metrics-interval-ms=2000
  - --exit-timeout-secs=5
  - --backend-config=python,stub-timeout-seconds=120
  {{- if eq (include "edge-gateway.allowsSharedMemory" .) "true" }}
  - --allow-client-shm=true
  {{- end }}
  {{- if .waitSeconds }}
  {{- /* The kubelet asks the pod's address for health, Prometheus for metrics; nobody needs more of it. */}}
  - --grpc-address=127.0.0.1
  {{- if eq (include "edge-gateway.atLeast" (dict "root" .root "pool" .pool "release" 24.01 "unknown" true)) "true" }}
  - --http-restricted-api=metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging:edge-gateway=$(POD_UID)
  {{- end }}
  {{- end }}
  {{- range .pool.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  - name: HOME
    value: /tmp
  {{- if .waitSeconds }}
  - name: POD_UID
    valueFrom:
      fieldRef:
        fieldPath: metadata.uid
  {{- end }}
  {{- with $triton.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: triton-http
    containerPort: 8000
  - name: triton-grpc
    containerPort: 8001
  - name: triton-metrics
    containerPort: 8002
startupProbe:
  httpGet:
    path: /v2/health/live
    port: triton-http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  httpGet:
    path: /v2/health/live
    port: triton-http
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /v2/health/ready
    port: triton-http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- with .waitSeconds }}
lifecycle:
  preStop:
    exec:
      command:
        - bash
        - -c
        - "for i in $(seq {{ . }}); do (: < /dev/tcp/127.0.0.1/8080) 2> /dev/null || exit 0; sleep 1; done"
{{- end }}
resources:
  {{- $resources := include "edge-gateway.resources" .pool.resources | fromYaml }}
  {{- if eq .pool.device "gpu" }}
  {{- $_ := set $resources "limits" (merge (dict .pool.gpu.resource (.pool.gpu.count | int)) $resources.limits) }}
  {{- $_ := set $resources "requests" (merge (dict .pool.gpu.resource (.pool.gpu.count | int)) $resources.requests) }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
{{ include "edge-gateway.containerSecurity" .root }}
volumeMounts:
  - name: models
    mountPath: /models
    readOnly: true
  - name: shared-memory
    mountPath: /dev/shm
  - name: triton-tmp
    mountPath: /tmp
  {{- with $triton.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "edge-gateway.tritonVolumes" -}}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.triton.sharedMemorySize | quote }}
- name: triton-tmp
  emptyDir:
    sizeLimit: {{ .Values.triton.tmpSize | quote }}
{{- with .Values.triton.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
