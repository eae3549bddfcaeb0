// A work queue's worker in a process of its own, so that a test can end it with SIGKILL.
//
//     node worker.js URL QUEUE
//
// Takes one task at a time (prefetch 1), writes `got BODY REDELIVERED` for each and acks it, except the task `stall` when it is
// new: that one it holds without an ack until somebody kills the process.

import amqp from 'amqplib';

const [url, queue] = process.argv.slice(2);
const connection = await amqp.connect(url);
const channel = await connection.createChannel();
await channel.assertQueue(queue, { durable: true });
await channel.prefetch(1);
await channel.consume(queue, (message) => {
  const { redelivered } = message.fields;
  const durability = message.properties.deliveryMode === 2 ? 'persistent' : 'transient';
  console.log('got', message.content.toString(), redelivered, durability);
  if (message.content.toString() !== 'stall' || redelivered) channel.ack(message);
});
console.log('ready');
