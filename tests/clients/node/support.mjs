// What every script of this directory needs: where the world is, and waiting with a bound.

import { readFileSync } from 'node:fs';
import https from 'node:https';

/** The harness writes it: addresses, the CA, devices with their connection strings. */
export const world = JSON.parse(readFileSync(process.env.LOCAL_JSON, 'utf8'));

/** The PEM text of the local CA. */
export const ca = readFileSync(world.caFile, 'utf8');

/** Takes the next device of the world; no two tests share one. */
let taken = 0;
export function nextDevice() {
  const device = world.devices[Number(process.env.FIRST_DEVICE ?? 0) + taken++];
  if (!device) throw new Error('the harness registered too few devices');
  return device;
}

/** `promise`, or an error that names what was awaited after `seconds`. */
export function within(seconds, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing after ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Keeps the `event`s of `emitter`; `next()` is a promise of the oldest that was not taken. */
export function queue(emitter, event) {
  const arrived = [];
  const waiting = [];
  emitter.on(event, (value) => (waiting.length ? waiting.shift()(value) : arrived.push(value)));
  return { next: () => (arrived.length ? Promise.resolve(arrived.shift()) : new Promise((resolve) => waiting.push(resolve))) };
}

/** Calls `probe` every 50 ms until it gives something; an error after `seconds`. */
export async function eventually(seconds, what, probe) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** GET of the hub's own HTTP interface, as JSON. */
export function hubGet(path) {
  return new Promise((resolve, reject) => {
    https
      .get(`${world.hub.https}${path}`, { ca, headers: { Authorization: world.service.sasToken } }, (response) => {
        let body = '';
        response.on('data', (chunk) => (body += chunk));
        response.on('end', () => {
          if (response.statusCode !== 200) return reject(new Error(`${path}: ${response.statusCode} ${body}`));
          resolve(JSON.parse(body));
        });
      })
      .on('error', reject);
  });
}

/** What the hub's ledger holds for one message of a device. */
export async function stored(deviceId, messageId) {
  const all = await telemetry(deviceId);
  return all.filter((row) => row.messageId === messageId);
}

/** Every telemetry transfer of a device that the hub saw, in order. */
export async function telemetry(deviceId) {
  return (await hubGet(`/ledger?kind=telemetry&device=${encodeURIComponent(deviceId)}`)).entries;
}
