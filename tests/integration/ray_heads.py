"""Ray clusters of a test's own, and jobs submitted to them as a user would."""

import json
import socket
import subprocess
import sys

from real_runs import REPOSITORY

from mlpt.runtime.local_cluster import RAY, LocalCluster, free_ports


class Head(LocalCluster):
    """`ray start --head` with token authentication, the dashboard on the loopback, and this repository on its path.

    `dashboard=False` leaves the dashboard out.
    """

    def __init__(self, folder, cpus, autoscaling=None, dashboard=True):
        self._has_dashboard = dashboard
        environment = {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")}
        environment["RAY_worker_niceness"] = "0"  # else workers wait for all else on a busy machine
        options, port = [] if dashboard else ["--include-dashboard=false"], free_ports(1)[0]
        if autoscaling is not None:
            environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
            config = folder / "autoscaling.json"
            config.write_text(json.dumps(autoscaling(f"127.0.0.1:{port}")))
            options.append(f"--autoscaling-config={config}")
        super().__init__(folder, cpus, environment, options, port)

    def job(self, *words, submit=("--working-dir", str(REPOSITORY)), environment=None, timeout=600):
        """`ray job submit WORDS`, with the repository as working directory unless `submit` says otherwise."""
        command = [RAY, "job", "submit", "--address", self.dashboard, *submit, "--"]
        return self._ray([*command, *map(str, words)], environment, timeout)

    def ask(self, *words, environment=None):
        """`ray job WORDS`; the completed process."""
        return self._ray([RAY, "job", words[0], "--address", self.dashboard, *words[1:]], environment, 240)

    def run(self, *words, timeout=400):
        """`mlpt WORDS` on this machine, as one of this cluster's users; the completed process."""
        return self._ray([sys.executable, "-m", "mlpt", *map(str, words)], None, timeout)

    def start(self, *words):
        """The process of `mlpt WORDS` and the file of its output; it is the caller's to end."""
        output = self.folder / "started.txt"
        with open(output, "wb") as file:
            command = [sys.executable, "-m", "mlpt", *map(str, words)]
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT
            )
        return process, output

    def resources(self):
        """(free, all) resources of the cluster, as another of its users sees them."""
        ask = (
            f"import json, ray; ray.init('{self.address}', logging_level='ERROR', log_to_driver=False); "
            "print(json.dumps([ray.available_resources(), ray.cluster_resources()]))"
        )
        asked = self._ray([sys.executable, "-c", ask], None, 120)
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout.splitlines()[-1])

    def count_nodes(self):
        """How many nodes besides the head are alive."""
        return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in self.state("nodes"))

    def _answers(self):
        if self._has_dashboard:
            return super()._answers()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _ray(self, command, environment, timeout):
        return subprocess.run(
            command,
            env={**self.environment, **(environment or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def nodes_of_one_cpu(most, idle_minutes=0.1):
    """An autoscaler that starts nodes, as processes of this machine, when something waits for their CPU.

    For `Head(autoscaling=...)`. Ray's own AutoscalingCluster would end every other Ray of this machine first.
    """
    commands = (
        "initialization_commands setup_commands head_setup_commands worker_setup_commands head_start_ray_commands "
        "worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
    )

    def config(gcs_address):
        return {
            "cluster_name": "fake",
            "max_workers": most,
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": idle_minutes,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in commands.split()},
            "provider": {
                "type": "fake_multinode",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": gcs_address,
            },
            "available_node_types": {
                "worker": {
                    "resources": {"CPU": 1, "object_store_memory": 100 * 2**20},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": most,
                },
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            },
            "head_node_type": "ray.head.default",
        }

    return config
