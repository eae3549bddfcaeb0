// amqp-connection-manager on amqplib, unmodified: confirmed publishers and consumers that live through restarts of the broker.
//
//     node manager.js URL
//
// Prints `ok NAME` for each scenario; the first deviation is a stack trace and exit code 1. It writes `restart broker` when it wants
// the broker killed and started again, and goes on when a line on standard input says that this is done. Ends by itself within
// TIME_LIMIT_MS.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import manager from 'amqp-connection-manager';

// Against hanging only: a busy machine may be slow.
const TIME_LIMIT_MS = 600_000;
const url = process.argv[2];
const answers = createInterface({ input: process.stdin });

async function restartBroker() {
  const answer = once(answers, 'line');
  console.log('restart broker');
  assert.deepEqual(await answer, ['restarted']);
}

async function until(isSo) {
  while (!(await isSo())) await sleep(20);
}

const connect = () => manager.connect([url], { heartbeatIntervalInSeconds: 5, reconnectTimeInSeconds: 0.2 });

// -------------------------------------------------------------------------------------------------------------- scenarios

// Messages handed in before there is a connection wait for it; JSON bodies, several setup functions, a dead-letter queue.
async function setupAndQueueing() {
  const connection = connect();
  const wrapper = connection.createChannel({
    json: true,
    confirm: true,
    setup: async (channel) => {
      await channel.assertQueue('manager.dead', { durable: true });
      await channel.assertQueue('manager.work', {
        durable: true, deadLetterExchange: '', deadLetterRoutingKey: 'manager.dead',
      });
      await channel.assertExchange('manager.topic', 'topic');
      await channel.bindQueue('manager.work', 'manager.topic', 'jobs.#');
    },
  });
  const early = Array.from({ length: 20 }, (_, number) => wrapper.publish('manager.topic', 'jobs.x', { number }, { persistent: true }));
  assert.deepEqual(await Promise.all(early), early.map(() => true));
  const numbers = [];
  const { consumerTag } = await wrapper.consume('manager.work', (message) => {
    const { number } = JSON.parse(message.content.toString());
    numbers.push(number);
    if (number % 2 === 0) wrapper.ack(message);
    else wrapper.nack(message, false, false);
  }, { prefetch: 5 });
  await until(() => numbers.length === 20);
  assert.deepEqual(numbers, Array.from({ length: 20 }, (_, number) => number));
  await wrapper.cancel(consumerTag);
  await until(async () => (await wrapper.checkQueue('manager.dead')).messageCount === 10);
  const dead = await wrapper.get('manager.dead', { noAck: true });
  const [death] = dead.properties.headers['x-death'];
  assert.deepEqual([death.queue, death.reason, death.count], ['manager.work', 'rejected', 1]);
  for (const queue of ['manager.dead', 'manager.work']) await wrapper.deleteQueue(queue);
  await wrapper.deleteExchange('manager.topic');
  await wrapper.close();
  await connection.close();
}

// The broker is killed twice with messages under way: everything confirmed arrives, every channel and consumer is set up again.
async function restartedMeanwhile() {
  const count = 400;
  const publishing = connect();
  const consuming = connect();
  let connects = 0;
  let disconnects = 0;
  consuming.on('connect', () => { connects += 1; });
  consuming.on('disconnect', () => { disconnects += 1; });
  const received = new Set();
  let repeated = 0;
  const consumer = consuming.createChannel({
    setup: async (channel) => {
      await channel.assertQueue('manager.robust', { durable: true });
      await channel.prefetch(10);
      await channel.consume('manager.robust', (message) => {
        if (received.has(message.properties.messageId)) repeated += 1;
        received.add(message.properties.messageId);
        channel.ack(message);
      });
    },
  });
  await consumer.waitForConnect();
  const publisher = publishing.createChannel({
    confirm: true,
    setup: (channel) => channel.assertQueue('manager.robust', { durable: true }),
  });
  const confirmed = [];
  const publish = async () => {
    for (let number = 0; number < count; number += 1) {
      const messageId = String(number);
      // The manager keeps what it has not sent yet; what was sent and not confirmed is refused, so it is sent again.
      const send = () => publisher.sendToQueue('manager.robust', Buffer.from('x'), { persistent: true, messageId });
      while (!(await send().catch((error) => assert.equal(error.message, 'channel closed')))) await sleep(50);
      confirmed.push(messageId);
      await sleep(2);
    }
  };
  const publishes = publish();
  await until(() => received.size >= 50);
  await restartBroker();
  await until(() => received.size >= 150);
  await restartBroker();
  await publishes;
  await until(() => received.size === count);
  assert.deepEqual(new Set(confirmed), received);
  assert.ok(connects >= 3 && disconnects >= 2, `${connects} connects, ${disconnects} disconnects`);
  assert.ok(repeated < count, `${repeated} came again`);
  await consumer.close();
  await publisher.deleteQueue('manager.robust');
  await publisher.close();
  await publishing.close();
  await consuming.close();
}

// A consumer's queue is deleted under it: the broker cancels it, and the manager's channel goes on.
async function cancelledByBroker() {
  const connection = connect();
  let cancelled = false;
  const wrapper = connection.createChannel({
    setup: async (channel) => {
      await channel.assertQueue('manager.cancelled', { durable: true });
      await channel.consume('manager.cancelled', (message) => { cancelled = message === null; });
    },
  });
  await wrapper.waitForConnect();
  const other = connection.createChannel();
  await other.waitForConnect();
  await other.deleteQueue('manager.cancelled');
  await until(() => cancelled);
  await wrapper.assertQueue('manager.cancelled', { durable: true });
  await wrapper.deleteQueue('manager.cancelled');
  await connection.close();
}

setTimeout(() => {
  console.error(`not done after ${TIME_LIMIT_MS} ms`);
  process.exit(1);
}, TIME_LIMIT_MS).unref();
for (const [name, scenario] of Object.entries({
  setup_and_queueing: setupAndQueueing,
  cancelled_by_broker: cancelledByBroker,
  restarted_meanwhile: restartedMeanwhile,
})) {
  await scenario();
  console.log('ok', name);
}
process.exit(0);
