// MQTT.js, unmodified, through the gateway: TLS and WebSocket.

import test from 'node:test';
import assert from 'node:assert/strict';
import mqtt from 'mqtt';
import { ca, nextDevice, telemetry, within, world } from './support.mjs';

const schemes = {
  mqtts: (host) => `mqtts://${host}:8883`,
  wss: (host) => `wss://${host}:443/$iothub/websocket`,
};

for (const [scheme, url] of Object.entries(schemes)) {
  test(`MQTT.js over ${scheme} sends, and every message is at the hub`, { timeout: 60_000 }, async (t) => {
    const device = nextDevice();
    const client = mqtt.connect(url(world.gateway.hostName), {
      clientId: device.deviceId,
      username: `${world.hub.hostName}/${device.deviceId}/?api-version=2021-04-12`,
      password: device.sasToken,
      protocolVersion: 4,
      reconnectPeriod: 0,
      ca,
    });
    t.after(() => client.end(true));
    await within(15, 'connect', new Promise((resolve, reject) => client.once('connect', resolve).once('error', reject)));
    const topic = `devices/${device.deviceId}/messages/events/`;
    const ids = Array.from({ length: 200 }, (_, n) => `js-${n}`);
    await within(30, 'PUBACKs', Promise.all(ids.map((id) => client.publishAsync(`${topic}%24.mid=${id}`, 'x', { qos: 1 }))));
    const rows = await telemetry(device.deviceId);
    assert.deepEqual(rows.map((row) => row.messageId), ids);
  });
}
