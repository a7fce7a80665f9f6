// The Azure device SDK for Node, unmodified, against the local hub: AMQP and AMQP over WebSocket.

import test from 'node:test';
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import device from 'azure-iot-device';
import transports from 'azure-iot-device-amqp';
import common from 'azure-iot-common';
import hub from 'azure-iothub';
import { nextDevice, eventually, queue, stored, within, world } from './support.mjs';

const { Client, Message } = device;

for (const name of ['Amqp', 'AmqpWs']) {
  test(`azure-iot-device over ${name}`, { timeout: 120_000 }, async (t) => {
    const { deviceId, connectionString } = nextDevice();
    const client = Client.fromConnectionString(connectionString, transports[name]);
    const service = hub.Client.fromConnectionString(world.service.connectionString);
    const registry = hub.Registry.fromConnectionString(world.service.connectionString);
    await within(20, 'open', client.open());
    await within(20, 'service open', service.open());
    // one listener for the whole test: without any, the SDK detaches its receiver
    const messages = queue(client, 'message');
    t.after(async () => {
      await within(10, 'close', client.close());
      await within(10, 'service close', service.close());
    });

    await t.test('telemetry is accepted and stored once', async () => {
      const messageId = randomUUID();
      const message = new Message(JSON.stringify({ temperature: 21.5 }));
      message.messageId = messageId;
      message.contentType = 'application/json';
      message.contentEncoding = 'utf-8';
      message.properties.add('alert', 'false');
      await within(10, 'send', client.sendEvent(message));
      const rows = await stored(deviceId, messageId);
      assert.equal(rows.length, 1, JSON.stringify(rows));
      assert.equal(rows[0].outcome, 'accepted');
    });

    await t.test('a cloud-to-device message arrives, is completed, and its feedback says so', async () => {
      const messageId = randomUUID();
      const { result: receiver } = await within(10, 'feedback receiver', service.getFeedbackReceiver());
      const feedback = new Promise((resolve) => {
        receiver.on('message', (batch) => {
          const records = JSON.parse(batch.getData().toString());
          const record = [].concat(records).find((each) => each.originalMessageId === messageId);
          if (record) resolve(record);
        });
      });
      const message = new common.Message('turn left');
      message.messageId = messageId;
      message.ack = 'full';
      message.properties.add('speed', '12');
      await within(10, 'service send', service.send(deviceId, message));
      const arrived = await within(10, 'the message', messages.next());
      assert.equal(arrived.getData().toString(), 'turn left');
      assert.equal(arrived.messageId, messageId);
      assert.equal(arrived.properties.getValue('speed'), '12');
      await within(10, 'complete', client.complete(arrived));
      const record = await within(40, 'feedback', feedback);
      assert.equal(record.statusCode.toLowerCase(), 'success');
      assert.equal(record.deviceId, deviceId);
    });

    await t.test('an abandoned message comes again, a rejected one does not', async () => {
      await within(10, 'service send', service.send(deviceId, new common.Message('again')));
      const message = await within(10, 'the message', messages.next());
      await within(10, 'abandon', client.abandon(message));
      const again = await within(10, 'the message again', messages.next());
      assert.equal(again.getData().toString(), 'again');
      await within(10, 'reject', client.reject(again));
    });

    await t.test('twin: read, report, be told of desired changes', async () => {
      const twin = await within(10, 'getTwin', client.getTwin());
      const desired = new Promise((resolve) => twin.on('properties.desired.interval', resolve));
      await within(
        10,
        'reported update',
        new Promise((resolve, reject) =>
          twin.properties.reported.update({ firmware: '1.2.3' }, (error) => (error ? reject(error) : resolve())),
        ),
      );
      const { responseBody } = await within(10, 'service getTwin', registry.getTwin(deviceId));
      assert.equal(responseBody.properties.reported.firmware, '1.2.3');
      await within(
        10,
        'service updateTwin',
        registry.updateTwin(deviceId, { properties: { desired: { interval: 7 } } }, responseBody.etag),
      );
      assert.equal(await within(10, 'desired change', desired), 7);
    });

    await t.test('a direct method is answered', async () => {
      client.onDeviceMethod('reboot', (request, response) => {
        response.send(202, { echo: request.payload }, (error) => assert.ifError(error));
      });
      const invoke = () =>
        service.invokeDeviceMethod(deviceId, {
          methodName: 'reboot',
          payload: { delay: 3 },
          responseTimeoutInSeconds: 10,
          connectTimeoutInSeconds: 5,
        });
      // the SDK opens its method links behind our back: until then the hub says that nobody listens
      const { result } = await eventually(20, 'method', () => invoke().catch(() => undefined));
      assert.equal(result.status, 202);
      assert.deepEqual(result.payload, { echo: { delay: 3 } });
    });
  });
}

test('a wrong key is refused', { timeout: 60_000 }, async () => {
  const { connectionString } = nextDevice();
  const wrong = connectionString.replace(/SharedAccessKey=.*/, `SharedAccessKey=${Buffer.alloc(32, 7).toString('base64')}`);
  const client = Client.fromConnectionString(wrong, transports.Amqp);
  client.setRetryPolicy(new common.NoRetry());
  await assert.rejects(within(20, 'open', client.open()), (error) => error.name === 'UnauthorizedError');
});
