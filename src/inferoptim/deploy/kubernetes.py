"""Kubernetes: a KServe InferenceService around our server, and a KEDA ScaledObject that scales it by its queue."""

from __future__ import annotations

import re
from typing import Any

import yaml

from inferoptim.deploy.compose import ServerInputs
from inferoptim.errors import ConfigError

PORT = 8080


def inference_service(
    server: ServerInputs,
    *,
    name: str,
    namespace: str,
    min_replicas: int,
    max_replicas: int,
    cpu: str,
    memory: str,
) -> dict[str, Any]:
    """A `serving.kserve.io/v1beta1` InferenceService in raw deployment mode (no Knative needed).

    Readiness asks /ready (a model is loaded), liveness asks /health, and a pod that must go drains first.

    Raises:
        ConfigError: a name that Kubernetes does not take, or replica counts that contradict each other.
    """
    for what, value in (("name", name), ("namespace", namespace)):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?", value):
            raise ConfigError(
                f"{what} {value!r}: small letters, digits and -, at most 53, starting with a letter"
            )
    if not 1 <= min_replicas <= max_replicas:
        raise ConfigError(
            f"replicas {min_replicas}..{max_replicas}: the least must be 1 or more and not above the most"
        )
    quantity = r"[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?"
    if not re.fullmatch(quantity, cpu) or not re.fullmatch(quantity, memory):
        raise ConfigError(f"cpu {cpu!r}, memory {memory!r}: Kubernetes quantities such as 4 and 16Gi")
    resources = {"cpu": cpu, "memory": memory}
    if server.gpus:
        resources["nvidia.com/gpu"] = str(server.gpus)

    def probe(path: str, failures: int) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": PORT},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }

    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {
                "serving.kserve.io/deploymentMode": "RawDeployment",
                "serving.kserve.io/autoscalerClass": "external",  # keda.yaml scales it
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(PORT),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": min_replicas,
                "maxReplicas": max_replicas,
                "terminationGracePeriodSeconds": server.drain_s + 15,
                "containers": [
                    {
                        "name": "kserve-container",
                        "image": server.image,
                        "args": server.arguments(PORT),
                        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
                        "resources": {"requests": resources, "limits": resources},
                        "startupProbe": probe("/ready", 120),  # ten minutes to fetch and load a model
                        "readinessProbe": probe("/ready", 2),
                        "livenessProbe": probe("/health", 6),
                        "securityContext": {
                            "runAsNonRoot": True,
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                    }
                ],
                "volumes": [{"name": "models", "emptyDir": {}}],
            }
        },
    }


def scaled_object(
    *,
    name: str,
    namespace: str,
    min_replicas: int,
    max_replicas: int,
    prometheus: str,
    waiting_per_replica: int,
) -> dict[str, Any]:
    """A `keda.sh/v1alpha1` ScaledObject on the number of waiting sequences.

    The queue is the signal that leads: CPU or GPU load is full long before and long after users wait.
    """
    if waiting_per_replica < 1:
        raise ConfigError("waiting sequences per replica must be at least 1")
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-predictor"},
            "minReplicaCount": min_replicas,
            "maxReplicaCount": max_replicas,
            "pollingInterval": 15,
            "cooldownPeriod": 300,
            "triggers": [
                {
                    "type": "prometheus",
                    "metadata": {
                        "serverAddress": prometheus,
                        "query": f'sum(inferoptim_requests_waiting{{namespace="{namespace}",pod=~"{name}-predictor-.*"}})',
                        "threshold": str(waiting_per_replica),
                    },
                }
            ],
        },
    }


def manifest(*objects: dict[str, Any]) -> str:
    """YAML documents, in order."""
    return "# Generated by `inferoptim deploy`.\n" + "---\n".join(
        yaml.safe_dump(o, sort_keys=False, width=110) for o in objects
    )
