"""mosquitto_pub and mosquitto_sub, unmodified, through the gateway."""

import subprocess

PATIENCE = 20


def command(world, device, program, *arguments):
    return [
        program,
        *("-h", world.gateway_host, "-p", "8883", "--cafile", world.ca_file, "-V", "mqttv311"),
        *("-i", device["deviceId"], "-u", world.user_name(device), "-P", device["sasToken"]),
        *arguments,
    ]


def test_mosquitto_pub_sends_a_file_line_by_line(world, device):
    topic = f"devices/{device['deviceId']}/messages/events/"
    lines = "".join(f"line {n}\n" for n in range(100))
    run = command(world, device, "mosquitto_pub", "-q", "1", "-t", topic, "-l")
    subprocess.run(run, input=lines, text=True, timeout=PATIENCE, check=True)
    assert len(world.stored(device["deviceId"], 100)) == 100


def test_mosquitto_pub_is_told_that_its_token_is_wrong(world, device):
    run = command(world, {**device, "sasToken": "nonsense"}, "mosquitto_pub", "-q", "1", "-t", "t", "-m", "m")
    done = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 5 or "not authori" in done.stderr.lower() or "bad user name" in done.stderr.lower(), done


def test_mosquitto_sub_gets_a_message_from_the_cloud(world, device):
    topic = f"devices/{device['deviceId']}/messages/devicebound/#"
    run = command(world, device, "mosquitto_sub", "-q", "1", "-t", topic, "-C", "1", "-W", str(PATIENCE))
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        world.send_to_device(device["deviceId"], "turn left")
        out, _ = process.communicate(timeout=PATIENCE)
    assert out == "turn left\n"
