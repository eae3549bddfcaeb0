"""aio-pika's robust connections, unmodified: a publisher and consumers that live through restarts of the broker.

    suite.py URL

Prints `ok NAME` for each scenario; the first deviation is a traceback and exit code 1. It writes `restart broker` when it wants the
broker killed and started again, and goes on when a line on standard input says that this is done. Ends by itself within
TIME_LIMIT_SECS.
"""

import asyncio
import sys

import aio_pika
from aio_pika import DeliveryMode, ExchangeType, Message
from aio_pika.exceptions import DeliveryError
from aio_pika.patterns import RPC, Master

# Against hanging only: a busy machine may be slow.
TIME_LIMIT_SECS = 600
URL = sys.argv[1]


def same(actual, expected, what):
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected!r}, got {actual!r}")


def connect():
    return aio_pika.connect_robust(URL, reconnect_interval=0.2)


async def restart_broker():
    print("restart broker", flush=True)
    answer = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    same(answer, "restarted\n", "the answer of the test")


def persistent(body):
    return Message(body.encode(), delivery_mode=DeliveryMode.PERSISTENT, message_id=body)


# ---------------------------------------------------------------------------------------------------------- scenarios


async def topology_and_refusals():
    """Exchanges, bindings, a mandatory message that nobody gets, a dead-letter queue, get and nack."""
    connection = await connect()
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.declare_exchange("aio.topic", ExchangeType.TOPIC, durable=True)
        dead = await channel.declare_queue("aio.dead", durable=True)
        queue = await channel.declare_queue(
            "aio.work",
            durable=True,
            arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "aio.dead"},
        )
        await queue.bind(exchange, "jobs.#")
        await exchange.publish(persistent("one"), "jobs.a.b")
        try:
            await exchange.publish(persistent("nobody"), "elsewhere", mandatory=True)
            raise AssertionError("an unroutable message was not returned")
        except DeliveryError:
            pass
        message = await queue.get()
        same((message.body, message.redelivered, message.routing_key), (b"one", False, "jobs.a.b"), "message")
        await message.nack(requeue=True)
        message = await queue.get()
        same(message.redelivered, True, "redelivered")
        await message.reject(requeue=False)
        message = await dead.get()
        death = message.headers["x-death"][0]
        same((death["queue"], death["reason"], death["count"]), ("aio.work", "rejected", 1), "x-death")
        await message.ack()
        same(await queue.get(fail=False), None, "empty")
        for one in (queue, dead):
            await one.delete()
        await exchange.delete()


async def transactions_and_qos():
    """A transaction, prefetch and cancel."""
    connection = await connect()
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue("aio.tx", durable=True)
        async with channel.transaction():
            await channel.default_exchange.publish(persistent("a"), "aio.tx")
            await channel.default_exchange.publish(persistent("b"), "aio.tx")
        other = await connection.channel()
        await other.set_qos(prefetch_count=1)
        again = await other.get_queue("aio.tx")
        async with again.iterator() as iterator:
            bodies = []
            async for message in iterator:
                async with message.process():
                    bodies.append(message.body)
                if len(bodies) == 2:
                    break
        same(bodies, [b"a", b"b"], "bodies")
        await queue.delete()


async def restarted_meanwhile():
    """The broker is killed with messages under way. Everything declared robustly comes back: consumers, exclusive queues, bindings."""
    connection = await connect()
    reconnects = []
    connection.reconnect_callbacks.add(lambda *_: reconnects.append(1))
    publishing = await connect()
    async with connection, publishing:
        consuming = await connection.channel()
        await consuming.set_qos(prefetch_count=10)
        queue = await consuming.declare_queue("aio.robust", durable=True)
        await queue.purge()
        news = await consuming.declare_exchange("aio.news", ExchangeType.FANOUT)
        inbox = await consuming.declare_queue("", exclusive=True)
        await inbox.bind(news)
        received, heard = [], []

        async def on_message(message):
            async with message.process():
                received.append((message.message_id, message.redelivered))

        async def on_news(message):
            heard.append(message.body)
            await message.ack()

        await queue.consume(on_message)
        await inbox.consume(on_news)
        channel = await publishing.channel(publisher_confirms=True)
        confirmed = []
        count = 400

        async def publish():
            for number in range(count):
                while True:
                    try:
                        # A confirm that was lost with its connection: published once more, under the same id.
                        await channel.default_exchange.publish(persistent(str(number)), "aio.robust", timeout=5)
                        break
                    except (ConnectionError, aio_pika.exceptions.AMQPError, asyncio.TimeoutError, RuntimeError):
                        await asyncio.sleep(0.1)
                confirmed.append(str(number))
                await asyncio.sleep(0.002)

        publisher = asyncio.create_task(publish())
        while len(received) < 50:
            await asyncio.sleep(0.01)
        await restart_broker()
        await restart_broker()
        await publisher
        while len({one for one, _ in received}) < count:
            await asyncio.sleep(0.01)
        same({one for one, _ in received}, set(confirmed), "what was confirmed has come")
        same(len(reconnects) >= 1, True, "reconnected")
        # The exchange is transient: it, the exclusive queue and the binding are there because the client declared them again.
        while not heard:
            try:
                await channel.default_exchange.publish(persistent("warm"), "aio.nowhere")
                other = await publishing.channel()
                await (await other.get_exchange("aio.news", ensure=False)).publish(Message(b"news"), "")
                await other.close()
            except aio_pika.exceptions.AMQPError:
                pass
            await asyncio.sleep(0.1)
        same(heard[0], b"news", "news")
        await queue.delete(if_unused=False, if_empty=False)
        await news.delete()


async def rpc_pattern():
    """aio-pika's RPC and Master patterns."""
    connection = await connect()
    async with connection:
        rpc = await RPC.create(await connection.channel())

        async def multiply(*, x, y):
            return x * y

        await rpc.register("aio.multiply", multiply, auto_delete=True)
        same([await rpc.proxy.aio.multiply(x=n, y=2) for n in range(20)], [2 * n for n in range(20)], "products")
        master = Master(await connection.channel())
        done = asyncio.Queue()

        async def work(*, task):
            await done.put(task)

        worker = await master.create_worker("aio.master", work, auto_delete=True)
        for number in range(10):
            await master.proxy.aio.master(task=number)
        same([await done.get() for _ in range(10)], list(range(10)), "tasks")
        await worker.close()
        await rpc.close()


SCENARIOS = [topology_and_refusals, transactions_and_qos, rpc_pattern, restarted_meanwhile]


async def main():
    async with asyncio.timeout(TIME_LIMIT_SECS):
        for scenario in SCENARIOS:
            await scenario()
            print("ok", scenario.__name__, flush=True)


asyncio.run(main())
