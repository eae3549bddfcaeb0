"""pika over TLS: a login by password and one by certificate, each with a message of some size there and back.

    tls.py HOST PORT AUTHORITY CERTIFICATE KEY
"""

import ssl
import sys

import pika


def play(name, host, port, context, credentials):
    parameters = pika.ConnectionParameters(
        host=host,
        port=port,
        credentials=credentials,
        ssl_options=pika.SSLOptions(context, "localhost"),
        heartbeat=30,
    )
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    body = bytes(range(256)) * 4096
    channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)
    _, properties, received = channel.basic_get(queue, auto_ack=True)
    assert properties.delivery_mode == 2
    assert received == body
    connection.close()
    print("ok", name)


def main():
    host, port, authority, certificate, key = sys.argv[1:]
    bare = ssl.create_default_context(cafile=authority)
    play("password", host, int(port), bare, pika.PlainCredentials("guest", "guest"))
    own = ssl.create_default_context(cafile=authority)
    own.load_cert_chain(certificate, key)
    play("certificate", host, int(port), own, pika.credentials.ExternalCredentials())


main()
