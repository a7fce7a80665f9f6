// Sends one cloud-to-device message with the Azure service SDK: node send.mjs DEVICE TEXT [MESSAGE-ID]

import common from 'azure-iot-common';
import hub from 'azure-iothub';
import { within, world } from './support.mjs';

const [deviceId, text, messageId] = process.argv.slice(2);
const client = hub.Client.fromConnectionString(world.service.connectionString);
await within(15, 'open', client.open());
const message = new common.Message(text);
if (messageId) message.messageId = messageId;
await within(15, 'send', client.send(deviceId, message));
await within(15, 'close', client.close());
