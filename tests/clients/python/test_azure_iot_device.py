"""azure-iot-device, unmodified, through the gateway by GatewayHostName."""

import time
import uuid

import pytest
from azure.iot.device import IoTHubDeviceClient, Message


@pytest.fixture(params=["tcp", "websockets"])
def client(world, device, request):
    with open(world.ca_file, encoding="utf-8") as file:
        ca = file.read()
    made = IoTHubDeviceClient.create_from_connection_string(
        device["gatewayConnectionString"],
        server_verification_cert=ca,
        websockets=request.param == "websockets",
        keep_alive=10,
    )
    yield made
    made.shutdown()


def message(text):
    made = Message(text)
    made.message_id = str(uuid.uuid4())
    made.content_type = "application/json"
    made.content_encoding = "utf-8"
    made.custom_properties["alert"] = "nö"
    return made


def test_it_connects_sends_and_reconnects(world, device, client):
    client.connect()
    sent = [message('{"t": 1}') for _ in range(20)]
    for each in sent:
        client.send_message(each)
    client.disconnect()
    client.connect()
    again = message('{"t": 2}')
    client.send_message(again)
    rows = world.stored(device["deviceId"], 21)
    assert [row["messageId"] for row in rows] == [each.message_id for each in [*sent, again]]


def test_it_gets_messages_from_the_cloud(world, device, client):
    arrived = []
    client.on_message_received = arrived.append
    client.connect()
    world.send_to_device(device["deviceId"], "hello", "c2d-1")
    end = time.monotonic() + 15
    while not arrived and time.monotonic() < end:
        time.sleep(0.05)
    assert [each.data for each in arrived] == [b"hello"]
    assert arrived[0].message_id == "c2d-1"
