"""The world that the harness started: addresses, the CA, devices with their connection strings."""

import json
import os
import ssl
import subprocess
import time
import urllib.parse
import urllib.request

import pytest


class World:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.description = json.load(file)
        self.ca_file = self.description["caFile"]
        self.hub_host = self.description["hub"]["hostName"]
        self.gateway_host = self.description["gateway"]["hostName"]
        self.taken = int(os.environ.get("FIRST_DEVICE", "0"))

    def device(self):
        """A device that no other test has."""
        device = self.description["devices"][self.taken]
        self.taken += 1
        return device

    def user_name(self, device):
        return f"{self.hub_host}/{device['deviceId']}/?api-version=2021-04-12"

    def get(self, path):
        request = urllib.request.Request(
            self.description["hub"]["https"] + path,
            headers={"Authorization": self.description["service"]["sasToken"]},
        )
        context = ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            return json.load(response)

    def ledger(self, device_id):
        """Every telemetry transfer of the device that the hub saw, in order."""
        return self.get("/ledger?kind=telemetry&device=" + urllib.parse.quote(device_id, safe=""))["entries"]

    def send_to_device(self, device_id, text, message_id=""):
        """One cloud-to-device message, by the Azure service SDK for Node."""
        scripts = os.environ["NODE_SCRIPTS"]
        run = ["node", os.path.join(scripts, "send.mjs"), device_id, text, message_id]
        subprocess.run(run, timeout=60, check=True)

    def stored(self, device_id, count, seconds=10):
        """The ledger's accepted rows once there are `count` of them."""
        end = time.monotonic() + seconds
        while True:
            rows = [row for row in self.ledger(device_id) if row["outcome"] == "accepted"]
            if len(rows) >= count or time.monotonic() > end:
                return rows
            time.sleep(0.05)


@pytest.fixture(scope="session")
def world():
    return World(os.environ["LOCAL_JSON"])


@pytest.fixture
def device(world):
    return world.device()
