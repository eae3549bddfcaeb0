// RabbitMQ's tutorials and publisher confirms, played with an unmodified amqplib against any broker.
//
//     node tutorials.js [URL]         or AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2f node tutorials.js
//
// Prints `ok NAME` for each scenario; the first deviation is a stack trace and exit code 1. Ends by itself within TIME_LIMIT_MS.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import amqp from 'amqplib';

// Against hanging only: a busy machine may be slow.
const TIME_LIMIT_MS = 600_000;
const STEP_LIMIT_MS = 60_000;
const url = process.argv[2] ?? process.env.AMQP_URL ?? 'amqp://guest:guest@127.0.0.1:5672/%2f';

const within = (promise, what) => {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`timed out waiting for ${what}`)), STEP_LIMIT_MS);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
};

async function freshQueue(channel, name, options) {
  await channel.deleteQueue(name);
  assert.deepEqual(await channel.assertQueue(name, options), { queue: name, messageCount: 0, consumerCount: 0 });
  return name;
}

// Deletes a queue that must be empty by now.
async function dropQueue(channel, name) {
  assert.deepEqual(await channel.deleteQueue(name), { messageCount: 0 }, `messages left in ${name}`);
}

// Consumes `count` messages and stops; a message too many that was on its way fails the test.
async function receive(channel, queue, count, options = { noAck: false }) {
  const received = [];
  let done;
  const enough = new Promise((resolve) => { done = resolve; });
  const { consumerTag } = await channel.consume(queue, (message) => {
    assert.notEqual(message, null, 'the broker cancelled the consumer');
    received.push(message);
    if (!options.noAck) channel.ack(message);
    if (received.length === count) done();
  }, options);
  if (count > 0) await within(enough, `${count} messages of ${queue}`);
  await channel.cancel(consumerTag);
  assert.equal(received.length, count, `messages of ${queue}`);
  return received;
}

const bodies = (received) => received.map((message) => message.content.toString());
const numbered = (count) => Array.from({ length: count }, (_, number) => `message ${number}`);

// The reply code with which the broker refuses `action` on a channel of its own.
async function refusal(connection, action) {
  const channel = await connection.createChannel();
  channel.on('error', () => {});
  const error = await action(channel).then(() => null, (failure) => failure);
  assert.notEqual(error, null, 'the broker did not refuse');
  return error.code;
}

// -------------------------------------------------------------------------------------------------------------- scenarios

async function helloWorld() {
  const sender = await amqp.connect(url);
  const sending = await sender.createChannel();
  const queue = await freshQueue(sending, 'node.hello', { durable: false });
  assert.equal(sending.sendToQueue(queue, Buffer.from('Hello World!')), true);
  await sending.close();
  await sender.close();

  const receiver = await amqp.connect(url);
  const channel = await receiver.createChannel();
  assert.equal((await channel.assertQueue(queue, { durable: false })).messageCount, 1);
  const [message] = await receive(channel, queue, 1, { noAck: true });
  assert.equal(message.content.toString(), 'Hello World!');
  const { exchange, routingKey, deliveryTag, redelivered } = message.fields;
  assert.deepEqual([exchange, routingKey, deliveryTag, redelivered], ['', queue, 1, false]);
  await dropQueue(channel, queue);
  await receiver.close();
}

// A worker process whose lines are awaited with a time limit.
class Worker {
  static async start(queue) {
    const worker = new Worker();
    const script = fileURLToPath(new URL('worker.js', import.meta.url));
    worker.process = spawn(process.execPath, [script, url, queue], { stdio: ['ignore', 'pipe', 'inherit'] });
    worker.exited = once(worker.process, 'exit');
    worker.lines = createInterface({ input: worker.process.stdout })[Symbol.asyncIterator]();
    await worker.expect('ready');
    return worker;
  }

  async expect(line) {
    const { value } = await within(this.lines.next(), `worker's line '${line}'`);
    assert.equal(value, line);
  }

  async kill() {
    this.process.kill('SIGKILL');
    await within(this.exited, 'the end of a killed worker');
  }
}

// Worker one holds `stall` and is killed with it; worker two does the rest and then that one, redelivered.
async function workQueue() {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  const queue = await freshQueue(channel, 'node.task_queue', { durable: true });
  const submit = (task) => channel.sendToQueue(queue, Buffer.from(task), { persistent: true });
  const workers = [];
  try {
    workers.push(await Worker.start(queue));
    submit('stall');
    await workers[0].expect('got stall false persistent');
    workers.push(await Worker.start(queue));
    for (const task of ['task 1', 'task 2', 'task 3']) {
      // Prefetch 1 keeps them away from the busy worker, where plain round robin would give it every other one.
      submit(task);
      await workers[1].expect(`got ${task} false persistent`);
    }
    assert.deepEqual(await channel.checkQueue(queue), { queue, messageCount: 0, consumerCount: 2 });
    await workers[0].kill();
    await workers[1].expect('got stall true persistent');
    submit('task 4');
    await workers[1].expect('got task 4 false persistent');
  } finally {
    for (const worker of workers) await worker.kill();
  }
  // Task 4 was perhaps acked before the second kill, perhaps not; nothing else may be left.
  await within(consumersGone(channel, queue), "the workers' end");
  const left = await channel.get(queue, { noAck: true });
  if (left) assert.deepEqual([left.content.toString(), left.fields.redelivered], ['task 4', true]);
  await dropQueue(channel, queue);
  await connection.close();
}

async function consumersGone(channel, queue) {
  while ((await channel.checkQueue(queue)).consumerCount > 0) await new Promise((resolve) => { setTimeout(resolve, 10); });
}

async function publishSubscribe() {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  await channel.deleteExchange('node.logs');
  const { exchange } = await channel.assertExchange('node.logs', 'fanout', { durable: false });
  channel.publish(exchange, '', Buffer.from('before anybody listened'));
  const subscribers = [];
  for (let number = 0; number < 2; number += 1) {
    const own = await amqp.connect(url);
    const listening = await own.createChannel();
    const { queue } = await listening.assertQueue('', { exclusive: true });
    assert.match(queue, /^amq\.gen-/);
    await listening.bindQueue(queue, exchange, '');
    subscribers.push({ own, listening, queue });
  }
  assert.notEqual(subscribers[0].queue, subscribers[1].queue);
  const lines = numbered(20);
  for (const line of lines) channel.publish(exchange, `ignored.${line}`, Buffer.from(line));
  for (const { listening, queue } of subscribers) {
    const received = await receive(listening, queue, lines.length, { noAck: true });
    assert.deepEqual(bodies(received), lines);
    assert.ok(received.every((message) => !message.fields.redelivered));
  }
  const look = (other) => other.checkQueue(subscribers[0].queue);
  assert.equal(await refusal(connection, look), 405, 'exclusive queue seen by another connection');
  for (const { own } of subscribers) await own.close();
  assert.equal(await refusal(connection, look), 404, 'exclusive queue after its connection');
  await channel.deleteExchange(exchange);
  await connection.close();
}

async function topics() {
  const keys = ['kern.critical', 'kern.info', 'auth.critical', 'auth.info', 'kern', 'kern.disk.critical', 'NYSE'];
  const expected = [
    [['#'], keys],
    [['kern.*'], ['kern.critical', 'kern.info']],
    // Two binding keys of one queue match kern.critical: it gets one copy.
    [['kern.*', '*.critical'], ['kern.critical', 'kern.info', 'auth.critical']],
    [['kern.#'], ['kern.critical', 'kern.info', 'kern', 'kern.disk.critical']],
    [['*'], ['kern', 'NYSE']],
    [['NYSE'], ['NYSE']],
  ];
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  await channel.deleteExchange('node.topic_logs');
  const { exchange } = await channel.assertExchange('node.topic_logs', 'topic', { durable: false });
  const queues = [];
  for (const [bindingKeys] of expected) {
    const { queue } = await channel.assertQueue('', { exclusive: true });
    for (const key of bindingKeys) await channel.bindQueue(queue, exchange, key);
    queues.push(queue);
  }
  for (const key of keys) channel.publish(exchange, key, Buffer.from(`about ${key}`), { headers: { key } });
  for (const [index, [, matching]] of expected.entries()) {
    const received = await receive(channel, queues[index], matching.length);
    assert.deepEqual(received.map((message) => message.fields.routingKey), matching);
    assert.deepEqual(bodies(received), matching.map((key) => `about ${key}`));
    assert.deepEqual(received.map((message) => message.properties.headers.key), matching);
    await dropQueue(channel, queues[index]);
  }
  await channel.deleteExchange(exchange);
  await connection.close();
}

const fibonacci = (number) => (number < 2 ? number : fibonacci(number - 1) + fibonacci(number - 2));

async function rpc() {
  const server = await amqp.connect(url);
  const serving = await server.createChannel();
  const queue = await freshQueue(serving, 'node.rpc_queue', { durable: false });
  await serving.prefetch(1);
  const served = [];
  await serving.consume(queue, (request) => {
    const { replyTo, correlationId } = request.properties;
    const number = Number(request.content.toString());
    served.push(number);
    serving.sendToQueue(replyTo, Buffer.from(String(fibonacci(number))), { correlationId });
    serving.ack(request);
  });

  const client = await amqp.connect(url);
  const channel = await client.createChannel();
  const { queue: callbackQueue } = await channel.assertQueue('', { exclusive: true });
  const waiting = new Map();
  await channel.consume(callbackQueue, (reply) => {
    const answer = waiting.get(reply.properties.correlationId);
    assert.ok(answer, `nobody waits for reply ${reply.properties.correlationId}`);
    waiting.delete(reply.properties.correlationId);
    answer(Number(reply.content.toString()));
  }, { noAck: true });
  const call = (number) => within(new Promise((resolve) => {
    const correlationId = `call-${number}`;
    waiting.set(correlationId, resolve);
    channel.sendToQueue(queue, Buffer.from(String(number)), { correlationId, replyTo: callbackQueue });
  }), `fibonacci(${number})`);

  assert.equal(await call(25), 75025);
  const numbers = Array.from({ length: 20 }, (_, number) => number);
  assert.deepEqual(await Promise.all(numbers.map(call)), numbers.map(fibonacci));
  assert.deepEqual(served, [25, ...numbers]);
  await client.close();
  // Closing the channel waits for the broker's answer, so the acks before it are done.
  await serving.close();
  await dropQueue(await server.createChannel(), queue);
  await server.close();
}

async function confirms() {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  const queue = await freshQueue(channel, 'node.confirms', { durable: true });
  const publish = (body, done) => channel.sendToQueue(queue, Buffer.from(body), { persistent: true }, done);
  const expected = numbered(1000);

  // One by one.
  for (const body of expected.slice(0, 20)) {
    await within(new Promise((resolve, reject) => {
      publish(body, (error) => (error ? reject(error) : resolve()));
    }), `the confirm of ${body}`);
  }
  assert.equal((await channel.checkQueue(queue)).messageCount, 20);
  // In a batch.
  for (const body of expected.slice(20, 120)) publish(body);
  await within(channel.waitForConfirms(), 'the confirms of the batch');
  assert.equal((await channel.checkQueue(queue)).messageCount, 120);
  // As they come: each confirmed once, in order.
  const confirmed = [];
  for (const body of expected.slice(120)) {
    publish(body, (error) => { assert.equal(error, null); confirmed.push(body); });
  }
  await within(channel.waitForConfirms(), 'the confirms of the stream');
  assert.deepEqual(confirmed, expected.slice(120));

  // Unroutable and mandatory: returned first, then confirmed.
  const events = [];
  channel.on('return', (message) => events.push([message.fields.replyCode, message.content.toString()]));
  channel.sendToQueue('node.no.such.queue', Buffer.from('lost'), { mandatory: true }, () => events.push('confirmed'));
  await within(channel.waitForConfirms(), 'the confirm of a returned message');
  assert.deepEqual(events, [[312, 'lost'], 'confirmed']);

  const received = await receive(channel, queue, expected.length);
  assert.deepEqual(bodies(received), expected);
  assert.ok(received.every((message) => message.properties.deliveryMode === 2));
  await dropQueue(channel, queue);
  await connection.close();
}

const SCENARIOS = { hello_world: helloWorld, work_queue: workQueue, publish_subscribe: publishSubscribe, topics, rpc, confirms };

setTimeout(() => {
  console.error(`not done within ${TIME_LIMIT_MS} ms`);
  process.exit(1);
}, TIME_LIMIT_MS).unref();
for (const [name, scenario] of Object.entries(SCENARIOS)) {
  await scenario();
  console.log('ok', name);
}
