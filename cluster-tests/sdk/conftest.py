"""Starts gateways and fake engines for the SDK scenarios.

The binary under test comes from SMG_BIN; everything listens on loopback and is stopped at the end.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

KEY = "sk-gateway"
MODEL = "demo"
RECORDED = "recorded"


def environment():
    """That of a node whose settings are its flags."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SMG_")}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url, method="GET", body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    if data is not None:
        request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if text[:1] in (b"{", b"[") else text


def wait_until(url, process, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the process behind {url} ended with {process.returncode}"
        try:
            return fetch(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise AssertionError(f"{url} did not answer within {seconds} s")


class Cluster:
    """A gateway and its engines, beside workers that are there already."""

    def __init__(self, binary, access=("--api-key", KEY), engines=2, workers=(), log=None):
        self.binary = binary
        self.processes = []
        try:
            self.engines = [self.engine(index) for index in range(engines)]
            self.launch(access, [*self.engines, *workers], log)
        except BaseException:
            self.stop()
            raise

    def launch(self, access, workers, log):
        self.port = free_port()
        self.metrics_url = f"http://127.0.0.1:{free_port()}/metrics"
        self.url = f"http://127.0.0.1:{self.port}"
        self.gateway = self.start(
            "launch", "--host", "127.0.0.1", "--port", self.port, "--prometheus-host", "127.0.0.1",
            "--prometheus-port", self.metrics_url.split(":")[2].split("/")[0], "--policy", "round_robin",
            "--stall-timeout", "1s", "--first-token-timeout", "2s", "--log-level", "debug" if log else "warn",
            "--drain-delay", "0s", *access, *(["--worker-urls", *workers] if workers else []), log=log,
        )
        if not workers:
            wait_until(f"{self.url}/livez", self.gateway)
            return
        wait_until(f"{self.url}/readyz", self.gateway)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = fetch(f"{self.url}/workers", headers=self.auth)["workers"]
            if all(worker["status"] == "ready" and worker["model_id"] in (MODEL, RECORDED) for worker in found):
                return
            time.sleep(0.02)
        raise AssertionError("the workers did not become ready")

    @property
    def auth(self):
        return {"authorization": f"Bearer {KEY}"}

    def engine(self, index):
        port = free_port()
        process = self.start("mock-worker", "--port", port, "--model", MODEL, "--name", f"engine-{index}")
        wait_until(f"http://127.0.0.1:{port}/health", process)
        return f"http://127.0.0.1:{port}"

    def start(self, *arguments, log=None):
        process = subprocess.Popen(
            [self.binary, *map(str, arguments)], env=environment(), cwd="/", stdout=log, stderr=log
        )
        self.processes.append(process)
        return process

    def ledger(self):
        """What the engines did, oldest first."""
        entries = []
        for engine in self.engines:
            answer = fetch(f"{engine}/mock/ledger")
            found = answer["entries"] if isinstance(answer, dict) else answer
            entries.extend({**entry, "engine": engine} for entry in found)
        return [entry for entry in entries if entry["path"].startswith("/v1/") and entry["path"] != "/v1/models"]

    def reset(self):
        for engine in self.engines:
            fetch(f"{engine}/mock/ledger", method="DELETE")
            fetch(f"{engine}/mock/faults", method="DELETE")

    def fault(self, engine, **rule):
        fetch(f"{self.engines[engine]}/mock/faults", method="POST", body=rule)

    def stop(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def session_cluster():
    cluster = Cluster(os.environ["SMG_BIN"])
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(session_cluster):
    session_cluster.reset()
    return session_cluster
