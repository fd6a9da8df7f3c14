"""A strict schema of the KubeRay v1 fields that our manifests use, from KubeRay's API reference (v1.6).

The operator's own CRD is in no package registry, so the fields are written down here: anything else is refused, and
what Kubernetes itself defines (the pod templates) is checked by `kubernetes-validate`'s copy of its schemas.
"""

from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.33"


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


STRING = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
STRINGS = {"type": "object", "additionalProperties": STRING}
METADATA = _object(["name"], name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)
POD_TEMPLATE = {"type": "object"}

HEAD_GROUP = _object(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=POD_TEMPLATE,
)
WORKER_GROUP = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=POD_TEMPLATE,
)
CLUSTER_SPEC = _object(
    ["headGroupSpec"],
    rayVersion=STRING,
    authOptions=_object(["mode"], mode={"enum": ["disabled", "token"]}, secretName=STRING),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_object(
        [],
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB_SPEC = _object(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    submitterConfig=_object([], backoffLimit=COUNT),
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)


def _manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


SCHEMAS = {"RayCluster": _manifest("RayCluster", CLUSTER_SPEC), "RayJob": _manifest("RayJob", JOB_SPEC)}


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayClusterSpec inside a RayCluster or RayJob."""
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of the head and of every worker group."""
    spec = cluster_spec(manifest)
    return [group["template"] for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", []))]


def validate(manifest: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` where KubeRay or Kubernetes would refuse, or silently drop, a field."""
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    for template in pod_templates(manifest):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)
