"""The six RabbitMQ tutorials and publisher confirms, played with an unmodified pika against any broker.

    tutorials.py [URL]          or AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2f tutorials.py

Prints `ok NAME` for each scenario; the first deviation is a traceback and exit code 1. Ends by itself within TIME_LIMIT_SECS.
"""

import os
import queue
import select
import signal
import subprocess
import sys
import threading

import pika
from pika.exceptions import ChannelClosedByBroker, UnroutableError

# Against hanging only: a busy machine may be slow.
TIME_LIMIT_SECS = 600
STEP_LIMIT_SECS = 60
URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)


def connect():
    return pika.BlockingConnection(pika.URLParameters(URL))


def same(actual, expected, what):
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected!r}, got {actual!r}")


def fresh_queue(channel, name, **arguments):
    """Declares `name` empty, whatever an earlier run that failed has left."""
    channel.queue_delete(name)
    declared = channel.queue_declare(name, **arguments).method
    same((declared.queue, declared.message_count, declared.consumer_count), (name, 0, 0), "fresh queue")
    return name


def fresh_exchange(channel, name, kind):
    channel.exchange_delete(name)
    channel.exchange_declare(name, exchange_type=kind)
    return name


def drop_queue(channel, name):
    """Deletes a queue that must be empty by now."""
    same(channel.queue_delete(name).method.message_count, 0, f"messages left in {name}")


def receive(connection, channel, queue_name, count, auto_ack=True):
    """Consumes `count` messages of a queue and stops; a message too many that was on its way fails the test."""
    received = []

    def on_message(_channel, method, properties, body):
        received.append((method, properties, body))
        if not auto_ack:
            channel.basic_ack(method.delivery_tag)

    tag = channel.basic_consume(queue_name, on_message, auto_ack=auto_ack)
    pump(connection, lambda: len(received) >= count, f"{count} messages of {queue_name}")
    channel.basic_cancel(tag)
    same(len(received), count, f"messages of {queue_name}")
    return received


def pump(connection, is_done, what):
    """Lets a connection work until `is_done`."""
    expired = []
    timer = connection.call_later(STEP_LIMIT_SECS, lambda: expired.append(True))
    while not is_done():
        if expired:
            raise AssertionError(f"timed out waiting for {what}")
        connection.process_data_events(time_limit=0.1)
    connection.remove_timeout(timer)


def bodies(received):
    return [body.decode() for _method, _properties, body in received]


# ---------------------------------------------------------------------------------------------------------- scenarios


def hello_world():
    sender = connect()
    channel = sender.channel()
    name = fresh_queue(channel, "python.hello")
    channel.basic_publish(exchange="", routing_key=name, body="Hello World!")
    sender.close()

    receiver = connect()
    channel = receiver.channel()
    same(channel.queue_declare(name).method.message_count, 1, "redeclared with its message")
    [(method, properties, body)] = receive(receiver, channel, name, 1)
    same(body, b"Hello World!", "body")
    same((method.exchange, method.routing_key), ("", name), "exchange and routing key")
    same((method.delivery_tag, method.redelivered), (1, False), "tag and redelivered")
    same(properties, pika.BasicProperties(), "properties nobody set")
    drop_queue(channel, name)
    receiver.close()


class Worker:
    """A worker process; its lines are read with a time limit."""

    def __init__(self, queue_name):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
        self.process = subprocess.Popen([sys.executable, script, URL, queue_name], stdout=subprocess.PIPE, text=True)
        self.expect("ready")

    def expect(self, line):
        # One line at a time is outstanding, so the text layer never holds back a line that select() cannot see.
        readable, _, _ = select.select([self.process.stdout], [], [], STEP_LIMIT_SECS)
        if not readable:
            raise AssertionError(f"worker said nothing, expected {line!r}")
        same(self.process.stdout.readline().rstrip("\n"), line, "worker")

    def kill(self):
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()


def work_queue():
    """Worker one holds `stall` and is killed with it; worker two does the rest and then that one, redelivered."""
    connection = connect()
    channel = connection.channel()
    name = fresh_queue(channel, "python.task_queue", durable=True)

    def submit(task):
        channel.basic_publish(exchange="", routing_key=name, body=task, properties=PERSISTENT)

    workers = [Worker(name)]
    try:
        submit("stall")
        workers[0].expect("got stall False persistent")
        workers.append(Worker(name))
        for task in ("task 1", "task 2", "task 3"):
            # Prefetch 1 keeps all of them away from the worker that is busy, where plain round robin would give it every other.
            submit(task)
            workers[1].expect(f"got {task} False persistent")
        state = channel.queue_declare(name, durable=True, passive=True).method
        same((state.message_count, state.consumer_count), (0, 2), "ready messages and consumers")
        workers[0].kill()
        workers[1].expect("got stall True persistent")
        submit("task 4")
        workers[1].expect("got task 4 False persistent")
        # The ack of task 4 was perhaps not yet handled: a task that arrives proves that it was (prefetch 1).
        submit("task 5")
        workers[1].expect("got task 5 False persistent")
    finally:
        for worker in workers:
            worker.kill()
    # Only what the second worker held last may be left: it was killed right after it took task 5.
    pump(connection, lambda: channel.queue_declare(name, passive=True).method.consumer_count == 0, "the workers' end")
    for method, _properties, body in receive_all(channel, name):
        same((body, method.redelivered), (b"task 5", True), "leftover")
    drop_queue(channel, name)
    connection.close()


def receive_all(channel, queue_name):
    """Takes what is in a queue with basic.get."""
    while True:
        method, properties, body = channel.basic_get(queue_name, auto_ack=True)
        if method is None:
            return
        yield method, properties, body


def publish_subscribe():
    connection = connect()
    channel = connection.channel()
    exchange = fresh_exchange(channel, "python.logs", "fanout")
    channel.basic_publish(exchange=exchange, routing_key="", body="before anybody listened")
    subscribers = [connect() for _ in range(2)]
    queues = []
    for subscriber in subscribers:
        own = subscriber.channel()
        name = own.queue_declare(queue="", exclusive=True).method.queue
        if not name.startswith("amq.gen-"):
            raise AssertionError(f"server-named queue is called {name!r}")
        own.queue_bind(exchange=exchange, queue=name)
        queues.append((subscriber, own, name))
    if queues[0][2] == queues[1][2]:
        raise AssertionError("two server-named queues share a name")
    lines = [f"line {number}" for number in range(20)]
    for number, line in enumerate(lines):
        # A fanout exchange does not look at the routing key.
        channel.basic_publish(exchange=exchange, routing_key=f"ignored.{number}", body=line)
    for subscriber, own, name in queues:
        received = receive(subscriber, own, name, len(lines))
        same(bodies(received), lines, "every subscriber's lines")
        same({method.redelivered for method, _, _ in received}, {False}, "redelivered")
    try:
        connection.channel().queue_declare(queues[0][2], passive=True)
        raise AssertionError("a foreign connection may look at an exclusive queue")
    except ChannelClosedByBroker as closed:
        same(closed.reply_code, 405, "exclusive queue seen by another connection")
    for subscriber in subscribers:
        subscriber.close()
    for _, _, name in queues:
        try:
            connection.channel().queue_declare(name, passive=True)
            raise AssertionError("an exclusive queue outlived its connection")
        except ChannelClosedByBroker as closed:
            same(closed.reply_code, 404, "exclusive queue after its connection")
    channel.exchange_delete(exchange)
    connection.close()


def routed(kind, name, bindings, keys, expected):
    """Publishes one message a key; queue i, bound with bindings[i], must hold exactly expected[i], in order."""
    connection = connect()
    channel = connection.channel()
    exchange = fresh_exchange(channel, name, kind)
    queues = []
    for binding_keys in bindings:
        queue_name = channel.queue_declare(queue="", exclusive=True).method.queue
        for key in binding_keys:
            channel.queue_bind(exchange=exchange, queue=queue_name, routing_key=key)
        queues.append(queue_name)
    for key in keys:
        channel.basic_publish(exchange=exchange, routing_key=key, body=f"about {key}")
    for queue_name, expected_keys in zip(queues, expected, strict=True):
        received = receive(connection, channel, queue_name, len(expected_keys), auto_ack=False)
        same([method.routing_key for method, _, _ in received], expected_keys, "routing keys")
        same(bodies(received), [f"about {key}" for key in expected_keys], "bodies")
        same({method.exchange for method, _, _ in received}, {exchange}, "exchange")
        drop_queue(channel, queue_name)
    channel.exchange_delete(exchange)
    connection.close()


def routing():
    routed(
        "direct",
        "python.direct_logs",
        bindings=[["error"], ["info", "warning", "error"], ["info"]],
        keys=["info", "error", "debug", "warning", "error", "info"],
        expected=[["error", "error"], ["info", "error", "warning", "error", "info"], ["info", "info"]],
    )


def topics():
    keys = ["kern.critical", "kern.info", "auth.critical", "auth.info", "kern", "kern.disk.critical", "NYSE"]
    routed(
        "topic",
        "python.topic_logs",
        # The third queue is bound by two keys that both match kern.critical: it gets one copy.
        bindings=[["#"], ["kern.*"], ["kern.*", "*.critical"], ["kern.#"], ["#.critical"], ["*"], ["NYSE"]],
        keys=keys,
        expected=[
            keys,
            ["kern.critical", "kern.info"],
            ["kern.critical", "kern.info", "auth.critical"],
            ["kern.critical", "kern.info", "kern", "kern.disk.critical"],
            ["kern.critical", "auth.critical", "kern.disk.critical"],
            ["kern", "NYSE"],
            ["NYSE"],
        ],
    )


def rpc():
    """Fibonacci over a queue: the server answers to reply_to with the caller's correlation_id."""

    def fibonacci(number):
        before, now = 0, 1
        for _ in range(number):
            before, now = now, before + now
        return before

    failures = queue.Queue()
    ready = threading.Event()
    served = []

    def serve():
        try:
            connection = connect()
            channel = connection.channel()
            name = fresh_queue(channel, "python.rpc_queue")
            channel.basic_qos(prefetch_count=1)

            def on_request(_channel, method, properties, body):
                channel.basic_publish(
                    exchange="",
                    routing_key=properties.reply_to,
                    properties=pika.BasicProperties(correlation_id=properties.correlation_id),
                    body=str(fibonacci(int(body))),
                )
                channel.basic_ack(method.delivery_tag)
                served.append(int(body))

            channel.basic_consume(name, on_request)
            ready.set()
            pump(connection, lambda: len(served) == 21, "21 requests")
            drop_queue(channel, name)
            connection.close()
        except BaseException as failure:  # noqa: BLE001 - handed to the main thread
            failures.put(failure)
            ready.set()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    ready.wait(STEP_LIMIT_SECS)
    if not failures.empty():
        raise failures.get()

    connection = connect()
    channel = connection.channel()
    callback_queue = channel.queue_declare(queue="", exclusive=True).method.queue
    replies = {}

    def on_reply(_channel, _method, properties, body):
        if properties.correlation_id in replies:
            raise AssertionError(f"a second reply to {properties.correlation_id}")
        replies[properties.correlation_id] = int(body)

    channel.basic_consume(callback_queue, on_reply, auto_ack=True)

    def request(number):
        channel.basic_publish(
            exchange="",
            routing_key="python.rpc_queue",
            properties=pika.BasicProperties(reply_to=callback_queue, correlation_id=f"call-{number}"),
            body=str(number),
        )

    request(30)
    pump(connection, lambda: replies, "the reply")
    same(replies, {"call-30": 832040}, "first reply")
    for number in range(20):
        request(number)
    pump(connection, lambda: len(replies) == 21, "20 replies")
    same(replies, {f"call-{number}": fibonacci(number) for number in [30, *range(20)]}, "replies")
    server.join(STEP_LIMIT_SECS)
    if not failures.empty():
        raise failures.get()
    same(served, [30, *range(20)], "requests in order")
    connection.close()


def direct_reply_to():
    """The same without a callback queue: the answers come straight to the channel that asks."""
    server = connect()
    serving = server.channel()
    name = fresh_queue(serving, "python.direct_rpc_queue")
    served = []

    def on_request(channel, method, properties, body):
        served.append(properties.reply_to)
        answer = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish(exchange="", routing_key=properties.reply_to, properties=answer, body=body.upper())
        channel.basic_ack(method.delivery_tag)

    serving.basic_consume(name, on_request)
    caller = connect()
    channel = caller.channel()
    replies = []
    channel.basic_consume(
        "amq.rabbitmq.reply-to",
        lambda _channel, method, properties, body: replies.append((properties.correlation_id, method.exchange, body)),
        auto_ack=True,
    )
    for number in range(20):
        asking = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=str(number))
        channel.basic_publish(exchange="", routing_key=name, properties=asking, body=f"call {number}")
    pump(server, lambda: len(served) == 20, "20 requests")
    pump(caller, lambda: len(replies) == 20, "20 direct replies")
    same(replies, [(str(number), "", f"CALL {number}".encode()) for number in range(20)], "direct replies")
    [reply_name] = set(served)
    same(serving.queue_declare(reply_name).method.consumer_count, 1, "somebody waits under the name")
    caller.close()
    server.close()
    cleaner = connect()
    drop_queue(cleaner.channel(), name)
    cleaner.close()


def delayed_exchange():
    """Messages come when their delay is over, in the order of that, and say that there was one."""
    connection = connect()
    channel = connection.channel()
    name = fresh_queue(channel, "python.delayed")
    channel.exchange_delete("python.later")
    kind = {"x-delayed-type": "topic"}
    channel.exchange_declare("python.later", exchange_type="x-delayed-message", durable=True, arguments=kind)
    channel.queue_bind(name, "python.later", "a.#")
    channel.confirm_delivery()
    for delay in (3000, 2000, 1000, None):
        headers = None if delay is None else {"x-delay": delay}
        properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent, headers=headers)
        channel.basic_publish("python.later", "a.b", str(delay), properties)
    received = receive(connection, channel, name, 4)
    same(bodies(received), ["None", "1000", "2000", "3000"], "in the order of their delays")
    delays = [(properties.headers or {}).get("x-delay") for _method, properties, _body in received]
    same(delays, [None, -1000, -2000, -3000], "negative delays")
    channel.exchange_delete("python.later")
    drop_queue(channel, name)
    connection.close()


def confirms_single():
    connection = connect()
    channel = connection.channel()
    name = fresh_queue(channel, "python.confirms.single", durable=True)
    channel.confirm_delivery()
    for number in range(20):
        # In confirm mode this returns when the broker has confirmed this one message; a nack raises.
        channel.basic_publish("", name, f"message {number}", properties=PERSISTENT)
        same(channel.queue_declare(name, passive=True).method.message_count, number + 1, "confirmed and there")
    try:
        channel.basic_publish("", "python.no.such.queue", "lost", properties=PERSISTENT, mandatory=True)
        raise AssertionError("an unroutable mandatory message was not returned")
    except UnroutableError as returned:
        [message] = returned.messages
        same((message.method.reply_code, message.method.reply_text), (312, "NO_ROUTE"), "return")
        same((message.method.routing_key, message.body), ("python.no.such.queue", b"lost"), "returned message")
    # Unroutable without mandatory: dropped, and confirmed all the same.
    channel.basic_publish("", "python.no.such.queue", "dropped", properties=PERSISTENT)
    received = receive(connection, channel, name, 20, auto_ack=False)
    same(bodies(received), [f"message {number}" for number in range(20)], "bodies")
    same({properties.delivery_mode for _, properties, _ in received}, {2}, "delivery mode")
    drop_queue(channel, name)
    connection.close()


class ConfirmingPublisher:
    """An asynchronous publisher that keeps at most `window` messages unconfirmed and ends when all are confirmed.

    `refill_at` is how few outstanding messages let it publish again: window - 1 is streaming, 0 is publishing in batches.
    """

    def __init__(self, queue_name, count, window, refill_at):
        self.queue_name, self.count, self.window, self.refill_at = queue_name, count, window, refill_at
        self.outstanding = []
        self.published = 0
        self.largest_burst = 0
        self.failure = "the connection never opened"
        self.connection = pika.SelectConnection(
            pika.URLParameters(URL),
            on_open_callback=self.on_open,
            on_open_error_callback=lambda _connection, error: self.stop(error),
            on_close_callback=lambda connection, _reason: connection.ioloop.stop(),
        )

    def on_open(self, connection):
        connection.channel(on_open_callback=self.on_channel)

    def on_channel(self, channel):
        self.channel = channel
        channel.add_on_close_callback(lambda _channel, reason: self.failure and self.stop(reason))
        channel.confirm_delivery(self.on_confirm, callback=lambda _frame: self.publish())

    def publish(self):
        burst = 0
        while self.published < self.count and len(self.outstanding) < self.window:
            self.channel.basic_publish("", self.queue_name, f"message {self.published}", PERSISTENT)
            self.published += 1
            self.outstanding.append(self.published)  # Confirm tags count publishes from 1.
            burst += 1
        self.largest_burst = max(self.largest_burst, burst)

    def on_confirm(self, frame):
        method = frame.method
        if not isinstance(method, pika.spec.Basic.Ack):
            return self.stop(f"not an ack: {method}")
        if method.delivery_tag not in self.outstanding:
            return self.stop(f"confirm of {method.delivery_tag}, outstanding {self.outstanding}")
        if method.multiple:
            self.outstanding = [tag for tag in self.outstanding if tag > method.delivery_tag]
        else:
            self.outstanding.remove(method.delivery_tag)
        if len(self.outstanding) <= self.refill_at:
            self.publish()
        if self.published == self.count and not self.outstanding:
            self.stop(None)
        return None

    def stop(self, failure):
        self.failure = failure
        if self.connection.is_open:
            self.connection.close()
        elif not self.connection.is_closing:
            self.connection.ioloop.stop()

    def run(self):
        self.connection.ioloop.start()
        if self.failure:
            raise AssertionError(f"{self.failure}")


def confirmed_stream(name, count, window, refill_at):
    connection = connect()
    channel = connection.channel()
    fresh_queue(channel, name, durable=True)
    publisher = ConfirmingPublisher(name, count, window, refill_at)
    publisher.run()
    same(publisher.largest_burst, window, "messages in flight at once")
    same(channel.queue_declare(name, passive=True).method.message_count, count, "confirmed and there")
    received = receive(connection, channel, name, count, auto_ack=False)
    same(bodies(received), [f"message {number}" for number in range(count)], "bodies")
    drop_queue(channel, name)
    connection.close()


def confirms_batch():
    confirmed_stream("python.confirms.batch", count=500, window=100, refill_at=0)


def confirms_async():
    confirmed_stream("python.confirms.async", count=2000, window=200, refill_at=199)


SCENARIOS = [
    hello_world,
    work_queue,
    publish_subscribe,
    routing,
    topics,
    rpc,
    direct_reply_to,
    delayed_exchange,
    confirms_single,
    confirms_batch,
    confirms_async,
]


def main():
    signal.alarm(TIME_LIMIT_SECS)
    for scenario in SCENARIOS:
        scenario()
        print("ok", scenario.__name__, flush=True)


main()
