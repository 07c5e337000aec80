{{/* What follows from how many gateways there are. */}}

{{- define "edge-gateway.several" -}}
{{- or (gt (int .Values.gateway.replicas) 1) (ne .Values.autoscaling.type "none") (eq .Values.gateway.kind "DaemonSet") }}
{{- end }}

{{- define "edge-gateway.shares" -}}
{{- $mode := .Values.broker.sharedSubscription -}}
{{- or (eq $mode "always") (and (eq $mode "auto") (eq (include "edge-gateway.several" .) "true")) }}
{{- end }}

{{/* Another namespace may have a release of the same name, and the broker is the same. */}}
{{- define "edge-gateway.shareGroup" -}}
{{- .Values.broker.shareGroup | default (printf "%s.%s" .Release.Namespace .Release.Name) }}
{{- end }}

{{/* Nodes have one name for all DaemonSets. */}}
{{- define "edge-gateway.clientId" -}}
{{- $of := eq .Values.gateway.kind "DaemonSet" | ternary (printf "%s-" (include "edge-gateway.fullname" .)) "" -}}
{{- printf "%s%s$(GATEWAY_ID)" (.Values.broker.clientIdPrefix | default (printf "edge-gateway-%s-" .Release.Namespace)) $of }}
{{- end }}

{{- define "edge-gateway.inputTopics" -}}
{{- $prefix := (eq (include "edge-gateway.shares" .) "true") | ternary (printf "$share/%s/" (include "edge-gateway.shareGroup" .)) "" -}}
{{- $topics := list -}}
{{- range .Values.broker.inputTopics }}{{- $topics = append $topics (printf "%s%s" $prefix .) }}{{- end -}}
{{- join "," $topics }}
{{- end }}

{{- define "edge-gateway.leaseName" -}}
{{- .Values.rollouts.leaseName | default (printf "%s-roller" (include "edge-gateway.fullname" .)) }}
{{- end }}

{{/* Of a DaemonSet nobody knows here whether it has more than one node. */}}
{{- define "edge-gateway.leaves" -}}
{{- $several := and (eq (include "edge-gateway.several" .) "true") (ne .Values.gateway.kind "DaemonSet") -}}
{{- $wanted := or (eq .Values.broker.leaveGroup "always") (and (eq .Values.broker.leaveGroup "auto") $several) -}}
{{- and $wanted (eq (include "edge-gateway.shares" .) "true") }}
{{- end }}

{{- define "edge-gateway.usesPodIndex" -}}
{{- contains "$(POD_INDEX)" (join "," .Values.broker.inputTopics) }}
{{- end }}

{{/* gateway.yaml: what a member of a group was away for comes back to it at once, and finds room. */}}
{{- define "edge-gateway.settings" -}}
{{- $usual := dict -}}
{{- if and (eq (include "edge-gateway.shares" .) "true") (eq (include "edge-gateway.several" .) "true") -}}
{{- $usual = dict "queue_max_messages" 256 "queue_max_bytes" 67108864 -}}
{{- end -}}
{{- merge (dict) .Values.gateway.settings $usual | toYaml }}
{{- end }}

{{- define "edge-gateway.sessionExpiry" -}}
{{- if kindIs "invalid" .Values.broker.sessionExpirySeconds -}}
{{- (eq (include "edge-gateway.several" .) "true") | ternary 600 86400 }}
{{- else -}}
{{- .Values.broker.sessionExpirySeconds | int64 }}
{{- end }}
{{- end }}

{{/* Whoever may share a volume, with another release too, needs more than a lock file: not every volume knows locks, and a
     roller with a Lease sees no file. */}}
{{- define "edge-gateway.lease" -}}
{{- if ne .Values.rollouts.lease "auto" -}}
{{- .Values.rollouts.lease }}
{{- else -}}
{{- eq .Values.models.volume.type "persistentVolumeClaim" | ternary "kubernetes" "file" }}
{{- end }}
{{- end }}
