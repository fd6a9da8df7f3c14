"""Ray clusters of a test's own: ports and a temporary directory of theirs, ended by process id, never by `ray stop`."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import ray
from real_runs import REPOSITORY, wait_until

RAY = str(Path(sys.executable).parent / "ray")


class Head:
    """`ray start --head` with token authentication and, unless it is left out, the dashboard on the loopback."""

    def __init__(self, folder, cpus, autoscaling=None, dashboard=True):
        self.folder = Path(folder)
        self.temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets below it have at most 107 letters
        self.token = self.folder / "token"
        self.token.write_text("0123456789abcdef0123456789abcdef")
        self.token.chmod(0o600)
        ports = free_ports(5)
        self.port, self.dashboard = ports[0], f"http://127.0.0.1:{ports[1]}"
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        names = (
            "port",
            "dashboard-port",
            "ray-client-server-port",
            "dashboard-agent-listen-port",
            "metrics-export-port",
        )
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            **({"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"} if autoscaling else {}),
        }
        extra = []
        if autoscaling is not None:
            config = self.folder / "autoscaling.json"
            config.write_text(json.dumps(autoscaling(self.address)))
            extra.append(f"--autoscaling-config={config}")
        self.process = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", "--dashboard-host=127.0.0.1", f"--temp-dir={self.temporary}"),
                *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
                *(
                    f"--num-cpus={cpus}",
                    f"--include-dashboard={str(dashboard).lower()}",
                    "--object-store-memory=200000000",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                ),
                *extra,
            ],
            env=self.environment,
            stdout=open(self.folder / "head.txt", "w"),  # noqa: SIM115 (lives as long as the process)
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(self._answers if dashboard else self._accepts, timeout=90)
        except BaseException:
            self.close()
            raise

    def job(self, *words, submit=("--working-dir", str(REPOSITORY)), environment=None, timeout=300):
        """`ray job submit WORDS`, with the repository as working directory unless `submit` says otherwise."""
        command = [RAY, "job", "submit", "--address", self.dashboard, *submit, "--"]
        return self._ray([*command, *map(str, words)], environment, timeout)

    def ask(self, *words, environment=None):
        """`ray job WORDS`; the completed process."""
        return self._ray([RAY, "job", words[0], "--address", self.dashboard, *words[1:]], environment, 60)

    def run(self, *words, timeout=400):
        """`mlpt WORDS` on this machine, as one of this cluster's users; the completed process."""
        return self._ray([sys.executable, "-m", "mlpt", *map(str, words)], None, timeout)

    def resources(self):
        """(free, all) resources of the cluster, as another of its users sees them."""
        ask = (
            f"import json, ray; ray.init('{self.address}', logging_level='ERROR', log_to_driver=False); "
            "print(json.dumps([ray.available_resources(), ray.cluster_resources()]))"
        )
        asked = self._ray([sys.executable, "-c", ask], None, 120)
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout.splitlines()[-1])

    def nodes(self):
        """How many nodes besides the head are alive."""
        request = urllib.request.Request(f"{self.dashboard}/api/v0/nodes?limit=100")
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)

    def close(self):
        """End the head and everything that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(self.process.pid)
            started = [head, *head.children(recursive=True)]
            _end(started, "terminate")
            _, left = psutil.wait_procs(started, timeout=8)
            _end(left, "kill")
        self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _ray(self, command, environment, timeout):
        return subprocess.run(
            command,
            env={**self.environment, **(environment or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def _accepts(self):
        assert self.process.poll() is None, (self.folder / "head.txt").read_text()
        with socket.socket() as probe:
            return probe.connect_ex((self.address.split(":")[0], self.port)) == 0

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "head.txt").read_text()
        try:
            urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=2)
        except urllib.error.HTTPError as error:
            return error.code == 401  # it is there, and wants the token
        except OSError:
            return False
        return True


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


def free_ports(count):
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _end(processes, how):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, how)()
