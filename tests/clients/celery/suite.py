"""Celery and kombu, unmodified: producers and real workers against any broker.

    suite.py URL [NAME...]

Prints `ok NAME` for each scenario; the first deviation is a traceback and exit code 1. It writes `restart broker` when it wants the
broker killed and started again, and goes on when a line on standard input says that this is done. Ends by itself within
TIME_LIMIT_SECS.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

# Against hanging only: a busy machine may be slow.
TIME_LIMIT_SECS = 600
STEP_LIMIT_SECS = 60
URL = sys.argv[1]
HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = tempfile.TemporaryDirectory()
os.environ["BROKER_URL"] = URL
os.environ["JOURNAL"] = os.path.join(FOLDER.name, "journal")

import jobs  # noqa: E402 (reads the environment)
from celery.exceptions import TaskRevokedError  # noqa: E402

app = jobs.app
WORKERS = []


def same(actual, expected, what):
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected!r}, got {actual!r}")


def until(what, look):
    """Looks again and again, until there is something."""
    end = time.monotonic() + STEP_LIMIT_SECS
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}; journal: {journal()}")


def journal():
    try:
        with open(os.environ["JOURNAL"], encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def lines(start):
    return [line for line in journal() if line.startswith(start)]


class Worker:
    """`celery worker` in a process group of its own: the parent that talks to the broker, and its children."""

    def __init__(self, name, queues, *flags):
        self.name = f"{name}@test"
        self.log = open(os.path.join(FOLDER.name, f"{name}.log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "jobs", "worker", "-n", self.name, "-Q", queues, "-l", "INFO"]
            + ["--concurrency", "1", *flags],
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        WORKERS.append(self)
        until(f"{name} ready", lambda: self.said(" ready.") or self.process.poll() is not None)
        same(self.process.poll(), None, f"{name} runs: {self.text()}")

    def text(self):
        with open(self.log.name, encoding="utf-8") as file:
            return file.read()

    def said(self, text):
        return text in self.text()

    def kill(self):
        """SIGKILL for the parent and all children, as when the machine is gone."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def stop(self):
        """The warm shutdown: running tasks are finished, the rest goes back to the broker."""
        os.kill(self.process.pid, signal.SIGTERM)
        same(self.process.wait(STEP_LIMIT_SECS), 0, f"end of {self.name}: {self.text()}")


@contextmanager
def worker(name, queues, *flags):
    one = Worker(name, queues, *flags)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.stop()


def declared(queue):
    with app.connection_for_read() as connection:
        return connection.default_channel.queue_declare(queue, passive=True)


def left(queue):
    """Messages that are ready in a queue."""
    return declared(queue).message_count


def restart_broker():
    print("restart broker", flush=True)
    same(sys.stdin.readline(), "restarted\n", "the answer of the test")


# ---------------------------------------------------------------------------------------------------------- scenarios


def results():
    """Results over `rpc://`: a reply queue of the producer, many results at once, an error, a group."""
    with worker("results", "celery.default"):
        same(jobs.add.delay(2, 3).get(timeout=STEP_LIMIT_SECS), 5, "a result")
        handed_in = [jobs.add.delay(number, number) for number in range(50)]
        same([one.get(timeout=STEP_LIMIT_SECS) for one in handed_in], [2 * n for n in range(50)], "fifty results")
        failure = jobs.add.delay(1, "x")
        same(type(failure.get(timeout=STEP_LIMIT_SECS, propagate=False)), TypeError, "an error")
        retried = jobs.flaky.delay("retry", 2)
        same(retried.get(timeout=STEP_LIMIT_SECS), 2, "the third attempt")
        same(lines("attempt retry"), [f"attempt retry {n}" for n in range(3)], "attempts")
    same(left("celery.default"), 0, "left")


def acks_late_killed_worker():
    """A worker is killed with a task in its hands; another one gets it, marked as redelivered."""
    first = Worker("first", "celery.late")
    jobs.hold.apply_async(["held"], queue="celery.late")
    until("the task runs", lambda: lines("start held False"))
    first.kill()
    with worker("second", "celery.late"):
        until("the task is done", lambda: lines("end held"))
    same(lines("start held"), ["start held False", "start held True"], "deliveries")
    same(left("celery.late"), 0, "left")


def countdown_and_eta():
    """Tasks with an ETA are held by the worker, unacknowledged; those behind them run at once; a stopped worker gives them back."""
    with worker("early", "celery.eta", "--prefetch-multiplier", "8"):
        sent = time.time()
        due = jobs.stamp.apply_async(["due"], countdown=3, queue="celery.eta")
        far = [jobs.stamp.apply_async(["far"], countdown=3600, queue="celery.eta") for _ in range(5)]
        jobs.stamp.apply_async(["now"], queue="celery.eta").get(timeout=STEP_LIMIT_SECS)
        due.get(timeout=STEP_LIMIT_SECS)
        [line] = lines("ran due")
        same(float(line.split()[2]) >= sent + 3, True, "not before its time")
    same(left("celery.eta"), len(far), "held ones came back")
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge("celery.eta")


def eta_beyond_the_prefetch():
    """More held tasks than the worker's prefetch, which it raises with the global bit.

    Only for brokers that call themselves RabbitMQ 3: for 4, which has no global prefetch, Celery leaves it alone.
    """
    with worker("crowded", "celery.eta", "--prefetch-multiplier", "1"):
        for _ in range(3):
            jobs.stamp.apply_async(["far"], countdown=3600, queue="celery.eta")
        jobs.stamp.apply_async(["behind them"], queue="celery.eta").get(timeout=STEP_LIMIT_SECS)
    same(left("celery.eta"), 3, "held ones came back")


def priorities():
    """Tasks of a queue with priorities run by rank when the worker comes late."""
    for number, priority in enumerate([0, 9, 5, 9, 1, 5]):
        jobs.stamp.apply_async([f"ranked{number}"], queue="celery.ranked", priority=priority)
    with worker("ranked", "celery.ranked", "--prefetch-multiplier", "1"):
        until("all ran", lambda: len(lines("ran ranked")) == 6)
    order = [line.split()[1] for line in lines("ran ranked")]
    same(order, [f"ranked{number}" for number in [1, 3, 2, 5, 4, 0]], "order")


def remote_control():
    """inspect, revoke (of a task that waits and one that runs), add_consumer and cancel_consumer: fanout and reply queues."""
    with worker("controlled", "celery.controlled") as one, worker("other", "celery.default") as other:
        inspect = app.control.inspect(timeout=STEP_LIMIT_SECS, limit=2)
        same(inspect.ping(), {name: {"ok": "pong"} for name in (one.name, other.name)}, "ping")
        just_one = app.control.inspect([one.name], timeout=STEP_LIMIT_SECS, limit=1)
        queues = just_one.active_queues()[one.name]
        same([queue["name"] for queue in queues], ["celery.controlled"], "its queues")
        same("total" in just_one.stats()[one.name], True, "stats")

        # A task that waits is dropped when its time comes; it has more of it when the worker heard too late.
        is_told = False
        for countdown in (3, 12, 40):
            name = f"revoked{countdown}"
            due = time.time() + countdown
            waiting = jobs.stamp.apply_async([name], countdown=countdown, queue="celery.controlled")
            until("it is scheduled", lambda: just_one.scheduled()[one.name] or time.time() > due)
            waiting.revoke()
            until("the worker knows", lambda: waiting.id in just_one.revoked()[one.name])
            is_told = time.time() < due
            if is_told:
                break
        same(is_told, True, "the worker knows before the time comes")
        try:
            waiting.get(timeout=STEP_LIMIT_SECS)
            raise AssertionError("a revoked task has a result")
        except TaskRevokedError:
            pass
        same(lines(f"ran {name}"), [], "a revoked task ran")

        running = jobs.endless.apply_async(["endless"], queue="celery.controlled")
        until("it runs", lambda: lines("start endless"))
        running.revoke(terminate=True, signal="SIGKILL")
        try:
            running.get(timeout=STEP_LIMIT_SECS)
            raise AssertionError("a terminated task has a result")
        except TaskRevokedError:
            pass

        reply = app.control.add_consumer(
            "celery.added", destination=[one.name], reply=True, timeout=STEP_LIMIT_SECS, limit=1
        )
        same("ok" in reply[0][one.name], True, "add_consumer")
        same(
            jobs.stamp.apply_async(["added"], queue="celery.added").get(timeout=STEP_LIMIT_SECS),
            "added",
            "a task through a queue that was added",
        )
        app.control.cancel_consumer(
            "celery.added", destination=[one.name], reply=True, timeout=STEP_LIMIT_SECS, limit=1
        )
        # The worker answers first and cancels then.
        until("nobody consumes", lambda: declared("celery.added").consumer_count == 0)
        jobs.stamp.apply_async(["after"], queue="celery.added")
        until("nobody takes it", lambda: left("celery.added") == 1)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete("celery.added")


def events():
    """A monitor sees a worker and the life of a task through the topic exchange `celeryev`."""
    seen = []
    arrived = threading.Event()

    def on_event(event):
        seen.append(event)
        if event["type"] == "task-succeeded":
            arrived.set()

    stop = threading.Event()
    ready = threading.Event()

    def monitor():
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": on_event})
            with receiver.consumer_context() as (own, _channel, _consumers):
                ready.set()
                while not stop.is_set():
                    try:
                        own.drain_events(timeout=0.2)
                    except TimeoutError:
                        pass

    thread = threading.Thread(target=monitor)
    thread.start()
    try:
        ready.wait(STEP_LIMIT_SECS)
        with worker("watched", "celery.watched", "-E") as one:
            task = jobs.stamp.apply_async(["watched"], queue="celery.watched")
            same(arrived.wait(STEP_LIMIT_SECS), True, "task-succeeded")
            until("a heartbeat", lambda: [e for e in seen if e["type"] == "worker-heartbeat"])
        until("the worker says goodbye", lambda: [e for e in seen if e["type"] == "worker-offline"])
    finally:
        stop.set()
        thread.join()
    of_task = [event["type"] for event in seen if event.get("uuid") == task.id]
    same(of_task, ["task-received", "task-started", "task-succeeded"], "events of the task")
    of_worker = {event["type"] for event in seen if event["hostname"] == one.name}
    same({"worker-online", "worker-offline"} <= of_worker, True, "events of the worker")


def broker_restarted():
    """The broker is killed under a worker; the worker comes back by itself, tasks that waited are not lost."""
    with worker("survivor", "celery.default") as one:
        same(jobs.add.delay(1, 1).get(timeout=STEP_LIMIT_SECS), 2, "before")
        for number in range(20):
            jobs.stamp.apply_async([f"kept{number}"], queue="celery.late")
        restart_broker()
        until("the worker is back", lambda: one.said("Connected to") and one.text().count("Connected to") >= 2)
        jobs.stamp.apply_async(["back"])
        until("it works again", lambda: lines("ran back"))
    with worker("late", "celery.late"):
        until("all that waited", lambda: len(lines("ran kept")) == 20)
    same(len(lines("ran kept")), 20, "none twice")


SCENARIOS = [
    results,
    acks_late_killed_worker,
    countdown_and_eta,
    priorities,
    remote_control,
    events,
    broker_restarted,
]
# Run when they are named only.
OTHERS = [eta_beyond_the_prefetch]


def overdue(_signal, _frame):
    raise AssertionError(f"not done after {TIME_LIMIT_SECS} s; journal: {journal()}")


def main():
    signal.signal(signal.SIGALRM, overdue)
    signal.alarm(TIME_LIMIT_SECS)
    try:
        names = sys.argv[2:]
        chosen = [one for one in SCENARIOS + OTHERS if one.__name__ in names] if names else SCENARIOS
        for scenario in chosen:
            scenario()
            print("ok", scenario.__name__, flush=True)
    except BaseException:
        for one in WORKERS:
            print(f"---- {one.name}\n{one.text()}", file=sys.stderr)
        raise
    finally:
        for one in WORKERS:
            one.kill()


main()
