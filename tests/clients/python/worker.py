"""A work queue's worker in a process of its own, so that a test can end it with SIGKILL.

    worker.py URL QUEUE

Takes one task at a time (prefetch 1), writes `got BODY REDELIVERED` for each and acks it, except the task `stall`: that one it
holds without an ack until somebody kills the process.
"""

import sys
import time

import pika


def main():
    url, queue = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    channel.basic_qos(prefetch_count=1)

    def on_task(_channel, method, properties, body):
        persistent = properties.delivery_mode == pika.DeliveryMode.Persistent.value
        print("got", body.decode(), method.redelivered, "persistent" if persistent else "transient", flush=True)
        # A killed worker never comes back from here: the socket breaks with the task unacked. Its second holder finishes it.
        if body == b"stall" and not method.redelivered:
            time.sleep(3600)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(queue, on_task)
    print("ready", flush=True)
    channel.start_consuming()


main()
