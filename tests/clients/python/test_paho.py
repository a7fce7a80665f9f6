"""paho-mqtt, unmodified, through the gateway."""

import queue
import threading

import paho.mqtt.client as mqtt
import pytest

PATIENCE = 15


class Paho:
    """One paho client whose callbacks become queues."""

    def __init__(self, world, device, password=None, transport="tcp", clean=True):
        self.connected = queue.Queue()
        self.disconnected = queue.Queue()
        self.published = queue.Queue()
        self.subscribed = queue.Queue()
        self.client = mqtt.Client(
            client_id=device["deviceId"], clean_session=clean, protocol=mqtt.MQTTv311, transport=transport
        )
        self.client.tls_set(ca_certs=world.ca_file)
        self.client.username_pw_set(world.user_name(device), password or device["sasToken"])
        if transport == "websockets":
            self.client.ws_set_options(path="/$iothub/websocket")
        self.client.on_connect = lambda client, data, flags, code: self.connected.put(code)
        self.client.on_disconnect = lambda client, data, code: self.disconnected.put(code)
        self.client.on_publish = lambda client, data, mid: self.published.put(mid)
        self.client.on_subscribe = lambda client, data, mid, granted: self.subscribed.put(granted)
        self.client.connect(world.gateway_host, 443 if transport == "websockets" else 8883, keepalive=30)
        self.client.loop_start()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def paho(world, request):
    made = []

    def make(device, **options):
        made.append(Paho(world, device, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
def test_a_message_is_acknowledged_once_the_hub_has_it(world, device, paho, transport):
    client = paho(device, transport=transport)
    assert client.connected.get(timeout=PATIENCE) == 0
    topic = f"devices/{device['deviceId']}/messages/events/%24.mid=first&colour=gr%C3%BCn"
    client.client.publish(topic, b"hello", qos=1)
    client.published.get(timeout=PATIENCE)
    rows = world.ledger(device["deviceId"])
    assert [row["messageId"] for row in rows] == ["first"]
    assert rows[0]["outcome"] == "accepted"


def test_a_thousand_messages_arrive_once_and_in_order(world, device, paho):
    client = paho(device)
    assert client.connected.get(timeout=PATIENCE) == 0
    client.client.max_inflight_messages_set(50)
    for n in range(1000):
        client.client.publish(f"devices/{device['deviceId']}/messages/events/%24.mid=m{n}", b"x" * 128, qos=1)
    for _ in range(1000):
        client.published.get(timeout=PATIENCE)
    rows = world.stored(device["deviceId"], 1000)
    assert [row["messageId"] for row in rows] == [f"m{n}" for n in range(1000)]


def test_qos_0_arrives_too(world, device, paho):
    client = paho(device)
    assert client.connected.get(timeout=PATIENCE) == 0
    client.client.publish(f"devices/{device['deviceId']}/messages/events/", b"fire and forget", qos=0)
    assert len(world.stored(device["deviceId"], 1)) == 1


def test_a_wrong_token_is_refused_with_code_5(world, device, paho):
    token = device["sasToken"]
    start = token.index("sig=") + 4
    wrong = token[:start] + ("A" if token[start] != "A" else "B") + token[start + 1 :]
    client = paho(device, password=wrong)
    assert client.connected.get(timeout=PATIENCE) == 5


def test_the_newer_connection_of_a_device_wins(world, device, paho):
    older = paho(device)
    assert older.connected.get(timeout=PATIENCE) == 0
    older.client.reconnect_delay_set(60, 60)
    newer = paho(device)
    assert newer.connected.get(timeout=PATIENCE) == 0
    assert older.disconnected.get(timeout=PATIENCE) != 0


def test_a_foreign_topic_closes_the_connection(world, device, paho):
    client = paho(device)
    assert client.connected.get(timeout=PATIENCE) == 0
    client.client.reconnect_delay_set(60, 60)
    client.client.publish("devices/somebody-else/messages/events/", b"not mine", qos=1)
    assert client.disconnected.get(timeout=PATIENCE) != 0
    assert world.ledger("somebody-else") == []


def test_subscribing_to_commands_is_granted_qos_1(world, device, paho):
    client = paho(device)
    assert client.connected.get(timeout=PATIENCE) == 0
    client.client.subscribe(f"devices/{device['deviceId']}/messages/devicebound/#", qos=2)
    assert tuple(client.subscribed.get(timeout=PATIENCE)) == (1,)


def test_twenty_devices_at_once(world, paho):
    devices = [world.device() for _ in range(20)]
    failures = []

    def talk(device):
        try:
            client = paho(device)
            assert client.connected.get(timeout=PATIENCE) == 0
            for n in range(50):
                client.client.publish(f"devices/{device['deviceId']}/messages/events/%24.mid=t{n}", b"x", qos=1)
            for _ in range(50):
                client.published.get(timeout=PATIENCE)
        except Exception as error:  # a thread's failure is told to the test
            failures.append((device["deviceId"], repr(error)))

    threads = [threading.Thread(target=talk, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for device in devices:
        rows = world.stored(device["deviceId"], 50)
        assert [row["messageId"] for row in rows] == [f"t{n}" for n in range(50)]
