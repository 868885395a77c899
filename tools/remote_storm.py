"""Machines come and are killed at random, the network drops, garbles and refuses at random, gc runs, all on one S3
store. At each look it must be valid, at the end complete and byte-identical.

    python -m tools.remote_storm [SECONDS]
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llm_build.remote.bucket import AccessDenied, Bucket, Unreachable
from llm_build.remote.gc import gc
from llm_build.remote.location import Location
from tests.conftest import ROOT
from tests.core.toy import write_source
from tests.remote.machine import Machine, digests, faults_of
from tests.remote.proxy import Fault, Proxy

RECIPES = [{"repeat": 3}, {"repeat": 2}, {"repeat": 3, "shards": 3}, {"repeat": 3, "most": 10**8}]
KINDS = ("drop", "truncate", "flip", "503", "403")
GRACE_S = 15.0  # longer than any upload here takes
CHILD = """
import json, sys
from pathlib import Path
from tests.remote.machine import Machine
root, source, url, options, recipe = sys.argv[1:]
machine = Machine(Path(root), Path(source), url, options=json.loads(options), timeout_s=5.0)
machine.build(**json.loads(recipe))
print(json.dumps(machine.warnings))
"""


@dataclass
class Weather(Fault):
    """One request in thirty suffers something."""

    def takes(self, method: str, path: str) -> bool:
        if random.random() > 1 / 30 or method not in ("GET", "PUT"):
            return False
        self.what = random.choice(KINDS if method == "GET" else ("503", "403"))
        return True


class Storm:
    def __init__(self, base: Path, port: int, proxy: Proxy) -> None:
        import botocore.session

        self.base, self.proxy = base, proxy
        self.source = write_source(base / "source.bin")
        self.client = botocore.session.Session().create_client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        self.client.create_bucket(Bucket="storm")
        self.quiet = {"endpoint_url": f"http://127.0.0.1:{port}"}
        self.rough = {"endpoint_url": f"http://127.0.0.1:{proxy.port}"}
        self.counts: Counter[str] = Counter()

    def objects(self) -> dict[str, bytes]:
        """The store at one moment, more or less: manifests are read first, so that none comes without its blobs."""
        listed = self.client.list_objects_v2(Bucket="storm").get("Contents", [])
        keys = [each["Key"] for each in listed]
        read = {}
        for key in sorted(keys, key=lambda key: "/records/" not in key):
            try:
                read[key] = self.client.get_object(Bucket="storm", Key=key)["Body"].read()
            except self.client.exceptions.NoSuchKey:
                continue  # gc, or the end of an upload
        return {key.removeprefix("x/"): data for key, data in read.items()}

    def machine(self, number: int) -> None:
        root, recipe = self.base / f"machine-{random.choice([number, number % 4])}", random.choice(RECIPES)
        words = [str(root), str(self.source), "s3://storm/x", json.dumps(self.rough), json.dumps(recipe)]
        child = subprocess.Popen([sys.executable, "-c", CHILD, *words], cwd=ROOT, stdout=subprocess.PIPE)
        if random.random() < 0.5:
            time.sleep(random.uniform(0.8, 3.0))
            child.send_signal(signal.SIGKILL)
        out, _ = child.communicate(timeout=120)
        self.counts["killed" if child.returncode == -signal.SIGKILL else f"ended with {child.returncode}"] += 1
        if child.returncode == 0:
            self.counts.update(
                kind
                for said in json.loads(out)
                for kind in ("does not answer", "refuses", "damaged", "cannot be written")
                if kind in said
            )

    def collect(self) -> None:
        try:
            freed = gc(Bucket(Location("s3://storm/x", options=self.rough)), 4, 20.0, (), False, GRACE_S)
            self.counts["freed by gc"] += freed.blobs + len(freed.records)
        except (Unreachable, AccessDenied):
            self.counts["gc stopped by the network"] += 1

    def lane(self, first: int, until: float) -> None:
        number = first
        while time.monotonic() < until:
            self.machine(number)
            number += 2

    def check_end(self) -> None:
        """What is there is valid, and complete after one quiet build of each recipe; the same bytes everywhere."""
        assert not faults_of(self.objects())
        for number, recipe in enumerate(RECIPES):
            alone = Machine(self.base / f"alone-{number}", self.source, f"file://{self.base}/alone-{number}-remote")
            wanted = digests(alone.build(**recipe))
            quiet = Machine(self.base / f"quiet-{number}", self.source, "s3://storm/x", options=self.quiet)
            assert digests(quiet.build(**recipe)) == wanted
            last = Machine(self.base / f"last-{number}", self.source, "s3://storm/x", "readonly", options=self.quiet)
            assert digests(last.build(**recipe)) == wanted
            assert not last.warnings
            assert last.ran(**recipe) == set()
        assert not faults_of(self.objects())


def main(seconds: float) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    proxy = Proxy(port, [Weather("")])
    proxy.start()
    with tempfile.TemporaryDirectory() as base:
        storm, until = Storm(Path(base), port, proxy), time.monotonic() + seconds
        lanes = [threading.Thread(target=storm.lane, args=(first, until), daemon=True) for first in (0, 1)]
        for lane in lanes:
            lane.start()
        while time.monotonic() < until:
            time.sleep(5)
            storm.collect()
            wrong = faults_of(storm.objects())
            storm.counts["looks"] += 1
            assert not wrong, wrong
        for lane in lanes:
            lane.join()
        storm.check_end()
    print(json.dumps({"requests": len(proxy.requests), **dict(sorted(storm.counts.items()))}))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0)
