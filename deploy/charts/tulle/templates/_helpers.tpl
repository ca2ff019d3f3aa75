{{/* The suffix of everything that belongs to one revision. */}}
{{- define "tulle.suffix" -}}
{{- if ne .Values.revision "default" }}-{{ .Values.revision }}{{ end -}}
{{- end -}}

{{- define "tulle.control" -}}tulle-control{{ include "tulle.suffix" . }}{{- end -}}
{{- define "tulle.injector" -}}tulle-injector{{ include "tulle.suffix" . }}{{- end -}}

{{/* By what a part's pods are found, which can never change. Takes (list ROOT NAME). */}}
{{- define "tulle.selector" -}}
app.kubernetes.io/name: {{ index . 1 }}
tulle.dev/rev: {{ (index . 0).Values.revision | quote }}
{{- end -}}

{{/* By what objects are found. Takes (list ROOT NAME). */}}
{{- define "tulle.labels" -}}
{{ include "tulle.selector" . }}
app.kubernetes.io/part-of: tulle
{{- end -}}

{{/* Metadata of an object in the namespace of the control plane. Takes (list ROOT NAME). */}}
{{- define "tulle.metadata" -}}
name: {{ index . 1 }}
namespace: tulle-system
labels:
  {{- include "tulle.labels" . | nindent 2 }}
{{- end -}}

{{/* Metadata of an object of the whole cluster. Takes (list ROOT NAME). */}}
{{- define "tulle.clusterMetadata" -}}
name: {{ index . 1 }}
labels:
  {{- include "tulle.labels" . | nindent 2 }}
{{- end -}}

{{/* An image. Takes (list ROOT NAME). */}}
{{- define "tulle.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.registry }}/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{/* What both Deployments have in common. Takes (list ROOT NAME VALUES). */}}
{{- define "tulle.deployment" -}}
{{- $part := index . 2 -}}
selector:
  matchLabels:
    {{- include "tulle.selector" . | nindent 4 }}
strategy:
  type: RollingUpdate
  {{- /* Where no two may be on one node, there may be no node for one more. */}}
  rollingUpdate: {{ eq $part.antiAffinity "required" | ternary "{ maxSurge: 0, maxUnavailable: 1 }" "{ maxSurge: 1, maxUnavailable: 0 }" }}
{{- if not $part.autoscaling.enabled }}
replicas: {{ $part.replicas }}
{{- else }}
{{- /* Autoscaling has the say. Until it acts there are as many as there were: a field that is left out would mean one. */}}
{{- with (lookup "apps/v1" "Deployment" "tulle-system" (index . 1)).spec }}
replicas: {{ .replicas }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What the pods of both parts have in common, but for containers and volumes. Takes (list ROOT NAME VALUES). */}}
{{- define "tulle.pod" -}}
{{- $root := index . 0 -}}
{{- $part := index . 2 -}}
serviceAccountName: {{ index . 1 }}
terminationGracePeriodSeconds: 30
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
{{- if eq $part.antiAffinity "required" }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "tulle.selector" . | nindent 10 }}
      {{- /* For pods of one form: what runs keeps others away, too, and those of the next form need not keep away. Servers
             before 1.31 leave it out. */}}
      matchLabelKeys: [pod-template-hash]
{{- else if eq $part.antiAffinity "preferred" }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "tulle.selector" . | nindent 12 }}
{{- end }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What the containers of both parts have in common, but for arguments, ports and mounts. Takes (list ROOT NAME VALUES). */}}
{{- define "tulle.container" -}}
{{- $root := index . 0 -}}
{{- $part := index . 2 -}}
name: {{ index . 1 }}
image: {{ include "tulle.image" (list $root "tulle") | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
env:
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: SERVICE_ACCOUNT
  valueFrom: { fieldRef: { fieldPath: spec.serviceAccountName } }
- name: POD_IP
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
readinessProbe:
  httpGet: { path: /ready, port: 15014 }
  periodSeconds: 2
  timeoutSeconds: 2
livenessProbe:
  tcpSocket: { port: 15014 }
  periodSeconds: 10
  failureThreshold: 6
resources:
  {{- toYaml $part.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: { drop: [ALL] }
  readOnlyRootFilesystem: true
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* What keeps a part there. Takes (list ROOT NAME VALUES). */}}
{{- define "tulle.availability" -}}
{{- $name := index . 1 -}}
{{- $part := index . 2 -}}
{{- if $part.disruptionBudget }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "tulle.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  # A pod that does not serve is no reason to wait.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "tulle.selector" . | nindent 6 }}
{{- end }}
{{- if gt (int $part.autoscaling.minReplicas) (int $part.autoscaling.maxReplicas) }}
{{- fail (printf "%s: autoscaling.minReplicas is more than maxReplicas: make it less" $name) }}
{{- end }}
{{- if $part.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "tulle.metadata" . | nindent 2 }}
spec:
  minReplicas: {{ $part.autoscaling.minReplicas }}
  maxReplicas: {{ $part.autoscaling.maxReplicas }}
  scaleTargetRef: { apiVersion: apps/v1, kind: Deployment, name: {{ $name }} }
  metrics:
  - type: Resource
    resource:
      name: cpu
      target: { type: Utilization, averageUtilization: {{ $part.autoscaling.cpuPercent }} }
{{- end }}
{{- end -}}
