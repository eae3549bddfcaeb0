"""The Celery application under test: its tasks leave a line in a journal for each thing that happens to them.

The workers take their settings from the environment: BROKER_URL, and JOURNAL, a file all of them append to.
"""

import os
import time

from celery import Celery
from kombu import Queue

app = Celery("jobs", broker=os.environ["BROKER_URL"], backend="rpc://")
app.conf.update(
    # A worker that is told to stop must not wait for a broker that is gone.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_default_queue="celery.default",
    task_queues=[
        Queue("celery.default"),
        Queue("celery.late"),
        Queue("celery.eta"),
        Queue("celery.controlled"),
        Queue("celery.watched"),
        Queue("celery.ranked", queue_arguments={"x-max-priority": 10}),
    ],
    task_create_missing_queues=True,
    task_publish_retry=True,
    broker_transport_options={"confirm_publish": True},
    worker_hijack_root_logger=False,
)


def note(*words):
    """Appends a line in one write, so that lines of several processes do not mix."""
    line = " ".join(str(word) for word in words) + "\n"
    descriptor = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@app.task
def add(a, b):
    return a + b


@app.task(bind=True, acks_late=True)
def hold(self, label):
    """Never ends the first time it is delivered; whoever gets it again finishes it."""
    redelivered = self.request.delivery_info["redelivered"]
    note("start", label, redelivered)
    if not redelivered:
        time.sleep(3600)
    note("end", label, redelivered)


@app.task
def stamp(label):
    note("ran", label, time.time())
    return label


@app.task
def endless(label):
    note("start", label)
    time.sleep(3600)
    note("end", label)


@app.task(bind=True, max_retries=3)
def flaky(self, label, failures):
    attempt = self.request.retries
    note("attempt", label, attempt)
    if attempt < failures:
        raise self.retry(countdown=0.2, exc=RuntimeError("not yet"))
    return attempt
