{{/* A quantity as a number: (toString "500m"). */}}
{{- define "edge-gateway.amount" -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-zA-Z]*$" .) | float64) | printf "%f" }}
{{- end }}

{{/* Requests above their limits, as text: (dict "path" "..." "resources" map). */}}
{{- define "edge-gateway.checkResources" -}}
{{- range $name, $request := .resources.requests -}}
{{- $limit := get $.resources.limits $name -}}
{{- if and $limit (gt (include "edge-gateway.amount" (toString $request) | float64) (include "edge-gateway.amount" (toString $limit) | float64)) -}}
{{- printf "%s.requests.%s is above its limit of %s" $.path $name (toString $limit) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What a schema cannot say: values that would have no effect, or a wrong one, together. */}}

{{- define "edge-gateway.check" -}}
{{- $v := .Values -}}
{{- $several := eq (include "edge-gateway.several" .) "true" -}}
{{- $auth := $v.broker.auth -}}
{{- $wrong := list -}}
{{- if not $v.broker.host }}{{- $wrong = append $wrong "broker.host is needed: the name of the MQTT broker" }}{{- end -}}
{{- if and (eq $v.gateway.kind "Deployment") $several -}}
  {{- $wrong = append $wrong "gateway.kind=Deployment takes one replica only: its pods have no names that the broker could know again; use StatefulSet" -}}
{{- end -}}
{{- if and (eq $v.gateway.kind "DaemonSet") (or (gt (int $v.gateway.replicas) 1) (ne $v.autoscaling.type "none")) -}}
  {{- $wrong = append $wrong "gateway.kind=DaemonSet has one gateway a node: leave gateway.replicas and autoscaling.type as they are" -}}
{{- end -}}
{{- if and (gt (int $v.gateway.partition) 0) (ne $v.gateway.kind "StatefulSet") -}}
  {{- $wrong = append $wrong "gateway.partition needs gateway.kind=StatefulSet" -}}
{{- end -}}
{{- if and (eq (include "edge-gateway.usesPodIndex" .) "true") (or (ne $v.gateway.kind "StatefulSet") (eq (include "edge-gateway.shares" .) "true")) -}}
  {{- $wrong = append $wrong "$(POD_INDEX) in broker.inputTopics needs gateway.kind=StatefulSet and broker.sharedSubscription=never: each replica has its own topics then" -}}
{{- end -}}
{{- if and (ne $v.autoscaling.type "none") (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) -}}
  {{- $wrong = append $wrong "autoscaling.maxReplicas is below autoscaling.minReplicas" -}}
{{- end -}}
{{- if and (ne $v.autoscaling.type "none") (eq $v.broker.sharedSubscription "never") -}}
  {{- $wrong = append $wrong "autoscaling needs broker.sharedSubscription=auto: each further gateway would answer everything once more" -}}
{{- end -}}
{{- if and (eq (include "edge-gateway.shares" .) "true") (eq (toString $v.gateway.settings.mqtt_protocol) "3.1.1") -}}
  {{- $wrong = append $wrong "several gateways share topics by MQTT 5: leave gateway.settings.mqtt_protocol out" -}}
{{- end -}}
{{- if and (eq $v.broker.leaveGroup "always") (ne (include "edge-gateway.shares" .) "true") }}{{- $wrong = append $wrong "broker.leaveGroup=always needs broker.sharedSubscription=always" }}{{- end -}}
{{- if and $v.broker.tls.caConfigMap $v.broker.tls.caSecret }}{{- $wrong = append $wrong "give one of broker.tls.caConfigMap and broker.tls.caSecret" }}{{- end -}}
{{- if and (eq (include "edge-gateway.hasBrokerCa" .) "true") (not $v.broker.tls.enabled) }}{{- $wrong = append $wrong "broker.tls.ca... needs broker.tls.enabled=true" }}{{- end -}}
{{- if and (has $auth.type (list "certificate" "serviceAccountToken")) (not $v.broker.tls.enabled) -}}
  {{- $wrong = append $wrong (printf "broker.auth.type=%s needs broker.tls.enabled=true" $auth.type) -}}
{{- end -}}
{{- if and (eq $auth.type "password") (not (and $auth.username $auth.existingSecret)) -}}
  {{- $wrong = append $wrong "broker.auth.type=password needs broker.auth.username and broker.auth.existingSecret" -}}
{{- end -}}
{{- if and (eq $auth.type "certificate") (not (or $auth.existingSecret $auth.certManager.enabled)) -}}
  {{- $wrong = append $wrong "broker.auth.type=certificate needs broker.auth.existingSecret or broker.auth.certManager.enabled=true" -}}
{{- end -}}
{{- if and $auth.certManager.enabled (or (ne $auth.type "certificate") (not $auth.certManager.issuerRef.name)) -}}
  {{- $wrong = append $wrong "broker.auth.certManager needs broker.auth.type=certificate and broker.auth.certManager.issuerRef.name" -}}
{{- end -}}
{{- if and (eq $v.mode "colocated") (not $v.triton.enabled) }}{{- $wrong = append $wrong "mode=colocated needs triton.enabled=true" }}{{- end -}}
{{- if and (eq $v.mode "colocated") (or $v.triton.pools (gt (int $v.triton.replicas) 1) (eq $v.triton.kind "DaemonSet")) -}}
  {{- $wrong = append $wrong "mode=colocated has one Triton beside each gateway: leave triton.pools, triton.replicas and triton.kind as they are; gateway.replicas and gateway.kind say how many" -}}
{{- end -}}
{{- if and (not $v.triton.enabled) (not $v.triton.external.endpoints) }}{{- $wrong = append $wrong "triton.enabled=false needs triton.external.endpoints" }}{{- end -}}
{{- if and $v.triton.enabled (or $v.triton.external.endpoints $v.triton.external.metricsUrls) }}{{- $wrong = append $wrong "triton.external needs triton.enabled=false" }}{{- end -}}
{{- if and $v.triton.external.metricsUrls (ne (len $v.triton.external.metricsUrls) (len $v.triton.external.endpoints)) -}}
  {{- $wrong = append $wrong "triton.external.metricsUrls needs one URL for each of triton.external.endpoints, or none" -}}
{{- end -}}
{{- if and $v.triton.enabled (eq $v.mode "apart") (eq $v.triton.kind "DaemonSet") (or $v.triton.pools (ne $v.gateway.kind "DaemonSet")) -}}
  {{- $wrong = append $wrong "triton.kind=DaemonSet needs gateway.kind=DaemonSet and no triton.pools: each gateway asks the Triton of its node" -}}
{{- end -}}
{{- if and $v.triton.enabled (not (include "edge-gateway.tritonEndpoints" .)) }}{{- $wrong = append $wrong "all replicas of Triton are 0: at least one must serve" }}{{- end -}}
{{- if and $v.triton.placement (not $v.triton.pools) }}{{- $wrong = append $wrong "triton.placement needs triton.pools" }}{{- end -}}
{{- if and $v.triton.placement (not (contains "," (include "edge-gateway.tritonEndpoints" .))) }}{{- $wrong = append $wrong "triton.placement needs several servers: there is one only" }}{{- end -}}
{{- if and (eq $v.models.volume.type "hostPath") (not $v.models.volume.hostPath) }}{{- $wrong = append $wrong "models.volume.type=hostPath needs models.volume.hostPath" }}{{- end -}}
{{- if and $v.models.volume.hostPath (ne $v.models.volume.type "hostPath") }}{{- $wrong = append $wrong "models.volume.hostPath needs models.volume.type=hostPath" }}{{- end -}}
{{- if and $v.models.volume.existingClaim (ne $v.models.volume.type "persistentVolumeClaim") }}{{- $wrong = append $wrong "models.volume.existingClaim needs models.volume.type=persistentVolumeClaim" }}{{- end -}}
{{- if and (eq $v.models.volume.type "emptyDir") (or (ne $v.mode "colocated") (not $v.models.download.sources)) -}}
  {{- $wrong = append $wrong "models.volume.type=emptyDir needs mode=colocated and models.download.sources: nobody else would see or fill it" -}}
{{- end -}}
{{- with $v.models.signature -}}
{{- if ne (empty .existingSecret) (and (empty .publicKey) (empty .certificate)) }}{{- $wrong = append $wrong "models.signature needs existingSecret and one of publicKey and certificate" }}{{- end -}}
{{- if and .publicKey .certificate }}{{- $wrong = append $wrong "give one of models.signature.publicKey and models.signature.certificate" }}{{- end -}}
{{- end -}}
{{- with $v.gateway.tokens -}}
{{- if ne (empty .existingSecret) (and (empty .commandKey) (empty .readKey)) }}{{- $wrong = append $wrong "gateway.tokens needs existingSecret and at least one of commandKey and readKey" }}{{- end -}}
{{- if and .readKey (eq .readKey .commandKey) }}{{- $wrong = append $wrong "gateway.tokens.readKey and commandKey must differ, or whoever may look could act" }}{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" (include "edge-gateway.fullname" .)) -}}
  {{- $wrong = append $wrong (printf "'%s' can name no Service: begin the release's name with a letter and leave dots out, or give fullnameOverride" (include "edge-gateway.fullname" .)) -}}
{{- end -}}
{{- if and $v.broker.azure.brokerAuthorization (not (index $v.serviceAccount.annotations "aio-broker-auth/group")) -}}
  {{- $wrong = append $wrong "broker.azure.brokerAuthorization needs serviceAccount.annotations with aio-broker-auth/group: the broker knows gateways by it" -}}
{{- end -}}
{{- if and (eq $v.models.volume.type "hostPath") $v.triton.enabled (eq $v.mode "apart") (eq $v.triton.kind "StatefulSet") (not (or $v.triton.nodeSelector $v.triton.affinity $v.triton.pools)) -}}
  {{- $wrong = append $wrong "models.volume.type=hostPath with mode=apart needs triton.nodeSelector or triton.affinity: which node has the folder; the gateways follow" -}}
{{- end -}}
{{- $apart := dig "podAntiAffinity" "requiredDuringSchedulingIgnoredDuringExecution" list $v.gateway.affinity -}}
{{- if and $apart (eq $v.gateway.kind "StatefulSet") $several (eq (include "edge-gateway.oneNode" .) "true") -}}
  {{- $wrong = append $wrong "gateway.affinity keeps the replicas apart, and the volume of the models keeps them on one node: models.volume.accessModes=[ReadWriteMany] lets them run on several" -}}
{{- end -}}
{{- $names := list -}}
{{- range $v.models.download.sources }}{{- $names = append $names .name }}{{- end -}}
{{- if ne (len $names) (len (uniq $names)) }}{{- $wrong = append $wrong "models.download.sources has a name twice" }}{{- end -}}
{{- if and $v.models.download.noProxy (not $v.models.download.proxy) }}{{- $wrong = append $wrong "models.download.noProxy needs models.download.proxy" }}{{- end -}}
{{- with include "edge-gateway.checkResources" (dict "path" "gateway.resources" "resources" $v.gateway.resources) }}{{- $wrong = append $wrong . }}{{- end -}}
{{- with include "edge-gateway.checkResources" (dict "path" "models.download.resources" "resources" $v.models.download.resources) }}{{- $wrong = append $wrong . }}{{- end -}}
{{- if $v.triton.enabled -}}
{{- range $name, $pool := include "edge-gateway.pools" . | fromYaml -}}
{{- $path := $name | empty | ternary "triton" (printf "triton.pools.%s" $name) -}}
{{- with include "edge-gateway.checkResources" (dict "path" (printf "%s.resources" $path) "resources" $pool.resources) }}{{- $wrong = append $wrong . }}{{- end -}}
{{- if and (eq $pool.device "gpu") $pool.image.digest (not $pool.image.tag) (eq $v.triton.allowClientSharedMemory "auto") -}}
  {{- $wrong = append $wrong (printf "%s.image.digest does not tell which Triton it is: give its tag too, or triton.allowClientSharedMemory" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $wrong }}{{- fail (printf "\n\n%s\n" (join "\n" $wrong)) }}{{- end -}}
{{- end }}
