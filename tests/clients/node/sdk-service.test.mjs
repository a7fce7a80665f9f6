// The Azure service SDK for Node, unmodified, against the local hub's REST side, and rhea as a bare AMQP reader.

import test from 'node:test';
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import device from 'azure-iot-device';
import transports from 'azure-iot-device-amqp';
import hub from 'azure-iothub';
import rhea from 'rhea';
import { ca, nextDevice, within, world } from './support.mjs';

const registry = hub.Registry.fromConnectionString(world.service.connectionString);

test('registry: a device is created, read, updated, listed and deleted', { timeout: 60_000 }, async () => {
  const deviceId = `made-${randomUUID()}`;
  const created = (await registry.create({ deviceId, status: 'enabled' })).responseBody;
  assert.equal(created.deviceId, deviceId);
  assert.ok(Buffer.from(created.authentication.symmetricKey.primaryKey, 'base64').length >= 16);
  const read = (await registry.get(deviceId)).responseBody;
  assert.equal(read.generationId, created.generationId);
  const updated = (await registry.update({ ...read, status: 'disabled', statusReason: 'test' })).responseBody;
  assert.equal(updated.status, 'disabled');
  const listed = (await registry.list()).responseBody;
  assert.ok(listed.some((each) => each.deviceId === deviceId));
  await registry.delete(deviceId);
  await assert.rejects(registry.get(deviceId), (error) => error.name === 'DeviceNotFoundError');
});

test('registry: what exists is not created twice', { timeout: 60_000 }, async () => {
  const { deviceId } = nextDevice();
  await assert.rejects(registry.create({ deviceId }), (error) => error.name === 'DeviceAlreadyExistsError');
});

test('registry: a module has keys and a twin of its own', { timeout: 60_000 }, async () => {
  const { deviceId } = nextDevice();
  await registry.addModule({ deviceId, moduleId: 'camera' });
  const module = (await registry.getModule(deviceId, 'camera')).responseBody;
  assert.equal(module.moduleId, 'camera');
  const twin = (await registry.getModuleTwin(deviceId, 'camera')).responseBody;
  assert.equal(twin.moduleId, 'camera');
  await registry.removeModule(deviceId, 'camera');
});

test('twin: a stale etag is refused', { timeout: 60_000 }, async () => {
  const { deviceId } = nextDevice();
  const twin = (await registry.getTwin(deviceId)).responseBody;
  await registry.updateTwin(deviceId, { tags: { site: 'a' } }, twin.etag);
  await assert.rejects(registry.updateTwin(deviceId, { tags: { site: 'b' } }, twin.etag));
  assert.equal((await registry.getTwin(deviceId)).responseBody.tags.site, 'a');
});

test('method: a device that is not connected is not found', { timeout: 60_000 }, async () => {
  const { deviceId } = nextDevice();
  const service = hub.Client.fromConnectionString(world.service.connectionString);
  await assert.rejects(
    service.invokeDeviceMethod(deviceId, { methodName: 'reboot', responseTimeoutInSeconds: 5, connectTimeoutInSeconds: 0 }),
    (error) => error.name === 'DeviceNotFoundError' || /404103/.test(error.responseBody ?? error.message),
  );
});

test('rhea reads telemetry from the partitions', { timeout: 60_000 }, async (t) => {
  const { deviceId, connectionString } = nextDevice();
  const container = rhea.create_container();
  // not a bare UUID: the SDK would write it as an AMQP uuid
  const messageId = `event-${randomUUID()}`;
  const [host, port] = world.hub.amqps.split(':');
  const connection = container.connect({
    transport: 'tls',
    host,
    hostname: world.hub.hostName,
    port: Number(port),
    ca,
    username: world.service.saslPlainUser,
    password: world.service.sasToken,
    reconnect: false,
  });
  t.after(() => connection.close());
  const arrived = new Promise((resolve, reject) => {
    container.on('message', ({ message }) => message.message_id === messageId && resolve(message));
    container.on('connection_error', ({ connection: failed }) => reject(failed.error));
    container.on('receiver_error', ({ receiver }) => reject(receiver.error));
  });
  for (let partition = 0; partition < world.hub.partitions; partition++) {
    connection.open_receiver(`/messages/events/ConsumerGroups/$Default/Partitions/${partition}`);
  }
  const client = device.Client.fromConnectionString(connectionString, transports.Amqp);
  await within(20, 'open', client.open());
  t.after(() => client.close());
  const message = new device.Message('for the reader');
  message.messageId = messageId;
  message.properties.add('colour', 'grün');
  await within(10, 'send', client.sendEvent(message));
  const read = await within(20, 'the event', arrived);
  assert.equal(read.message_annotations['iothub-connection-device-id'], deviceId);
  assert.equal(read.message_annotations['iothub-message-source'], 'Telemetry');
  assert.equal(read.application_properties.colour, 'grün');
  assert.equal(Buffer.from(read.body.content ?? read.body).toString(), 'for the reader');
});
