import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.BuiltinExchangeType;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.MessageProperties;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Timer;
import java.util.TimerTask;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.IntStream;

/**
 * RabbitMQ's tutorials and publisher confirms, played with the unmodified Java client against any broker.
 *
 * <pre>java -cp "target/classes:target/dependency/*" Tutorials [URL]      or AMQP_URL in the environment</pre>
 *
 * Prints `ok NAME` for each scenario; the first deviation is a stack trace and exit code 1. Ends by itself within TIME_LIMIT_MS.
 * `Tutorials worker URL QUEUE` is the worker process of the work queue.
 */
final class Tutorials {
    // Against hanging only: a busy machine may be slow.
    private static final long TIME_LIMIT_MS = 600_000;
    private static final long STEP_LIMIT_MS = 60_000;

    private static String url = "amqp://guest:guest@127.0.0.1:5672/%2f";

    private interface Scenario {
        void play() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length == 3 && arguments[0].equals("worker")) {
            url = arguments[1];
            Worker.work(arguments[2]);
            return;
        }
        url = arguments.length > 0 ? arguments[0] : System.getenv().getOrDefault("AMQP_URL", url);
        new Timer("time limit", true).schedule(new TimerTask() {
            @Override
            public void run() {
                System.err.println("not done within " + TIME_LIMIT_MS + " ms");
                Runtime.getRuntime().halt(1);
            }
        }, TIME_LIMIT_MS);
        Map<String, Scenario> scenarios = new LinkedHashMap<>();
        scenarios.put("hello_world", Tutorials::helloWorld);
        scenarios.put("work_queue", Tutorials::workQueue);
        scenarios.put("publish_subscribe", Tutorials::publishSubscribe);
        scenarios.put("topics", Tutorials::topics);
        scenarios.put("rpc", Tutorials::rpc);
        scenarios.put("confirms", Tutorials::confirms);
        try {
            for (Map.Entry<String, Scenario> scenario : scenarios.entrySet()) {
                scenario.getValue().play();
                System.out.println("ok " + scenario.getKey());
            }
        } catch (Throwable failure) {
            // The client's threads would keep the process alive.
            failure.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    private static Connection connect() throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(url);
        // A connection that comes back by itself would hide a broken one.
        factory.setAutomaticRecoveryEnabled(false);
        return factory.newConnection();
    }

    private static void same(Object actual, Object expected, String what) {
        if (!Objects.equals(actual, expected)) {
            throw new AssertionError(what + ": expected " + expected + ", got " + actual);
        }
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(Delivery delivery) {
        return new String(delivery.getBody(), StandardCharsets.UTF_8);
    }

    private static List<String> numbered(int count) {
        return IntStream.range(0, count).mapToObj(number -> "message " + number).toList();
    }

    private static String freshQueue(Channel channel, String name, boolean isDurable) throws IOException {
        channel.queueDelete(name);
        var declared = channel.queueDeclare(name, isDurable, false, false, null);
        same(List.of(declared.getQueue(), declared.getMessageCount(), declared.getConsumerCount()), List.of(name, 0, 0),
            "fresh queue");
        return name;
    }

    /** A server-named queue that goes with its connection; queueDeclare() without arguments would go with its consumer. */
    private static String exclusiveQueue(Channel channel) throws IOException {
        return channel.queueDeclare("", false, true, false, null).getQueue();
    }

    /** Deletes a queue that must be empty by now. */
    private static void dropQueue(Channel channel, String name) throws IOException {
        same(channel.queueDelete(name).getMessageCount(), 0, "messages left in " + name);
    }

    private static <T> T take(BlockingQueue<T> items, String what) throws InterruptedException {
        T item = items.poll(STEP_LIMIT_MS, TimeUnit.MILLISECONDS);
        if (item == null) {
            throw new AssertionError("timed out waiting for " + what);
        }
        return item;
    }

    /** Consumes `count` messages and stops; a message too many that was on its way fails. */
    private static List<Delivery> receive(Channel channel, String queue, int count, boolean isAutoAck) throws Exception {
        BlockingQueue<Delivery> deliveries = new LinkedBlockingQueue<>();
        String tag = channel.basicConsume(queue, isAutoAck, (consumerTag, delivery) -> {
            if (!isAutoAck) {
                channel.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
            }
            deliveries.add(delivery);
        }, consumerTag -> { });
        List<Delivery> received = new ArrayList<>();
        while (received.size() < count) {
            received.add(take(deliveries, "messages of " + queue));
        }
        channel.basicCancel(tag);
        deliveries.drainTo(received);
        same(received.size(), count, "messages of " + queue);
        return received;
    }

    private static List<String> bodies(List<Delivery> deliveries) {
        return deliveries.stream().map(Tutorials::text).toList();
    }

    // ------------------------------------------------------------------------------------------------------- scenarios

    private static void helloWorld() throws Exception {
        String queue;
        try (Connection sender = connect(); Channel channel = sender.createChannel()) {
            queue = freshQueue(channel, "java.hello", false);
            channel.basicPublish("", queue, null, bytes("Hello World!"));
        }
        try (Connection receiver = connect(); Channel channel = receiver.createChannel()) {
            same(channel.queueDeclare(queue, false, false, false, null).getMessageCount(), 1, "redeclared with its message");
            Delivery delivery = receive(channel, queue, 1, true).get(0);
            var envelope = delivery.getEnvelope();
            same(text(delivery), "Hello World!", "body");
            same(List.of(envelope.getExchange(), envelope.getRoutingKey(), envelope.getDeliveryTag(), envelope.isRedeliver()),
                List.of("", queue, 1L, false), "envelope");
            dropQueue(channel, queue);
        }
    }

    /** A worker process whose lines are awaited with a time limit. */
    private static final class Worker {
        private final Process process;
        private final BlockingQueue<String> lines = new LinkedBlockingQueue<>();

        Worker(String queue) throws Exception {
            String java = ProcessHandle.current().info().command().orElse("java");
            process = new ProcessBuilder(java, "-Xshare:auto", "-cp", System.getProperty("java.class.path"), "Tutorials", "worker",
                url, queue).redirectError(ProcessBuilder.Redirect.INHERIT).start();
            Thread reader = new Thread(() -> {
                try (BufferedReader output = new BufferedReader(new InputStreamReader(process.getInputStream()))) {
                    output.lines().forEach(lines::add);
                } catch (IOException | java.io.UncheckedIOException killed) {
                    // Nothing more to read; expect() says what is missing.
                }
            });
            reader.setDaemon(true);
            reader.start();
            expect("ready");
        }

        /**
         * In the worker's own process: takes one task at a time, writes `got BODY REDELIVERED MODE` for each and acks it, except a
         * new `stall`: that one it holds until somebody kills the process.
         */
        static void work(String queue) throws Exception {
            Channel channel = connect().createChannel();
            channel.basicQos(1);
            channel.basicConsume(queue, false, (consumerTag, task) -> {
                boolean isRedelivered = task.getEnvelope().isRedeliver();
                System.out.println("got " + text(task) + " " + isRedelivered + " " + task.getProperties().getDeliveryMode());
                if (!text(task).equals("stall") || isRedelivered) {
                    channel.basicAck(task.getEnvelope().getDeliveryTag(), false);
                }
            }, consumerTag -> { });
            System.out.println("ready");
        }

        void expect(String line) throws InterruptedException {
            same(take(lines, "worker's line '" + line + "'"), line, "worker");
        }

        /** Sends SIGKILL and waits for the end. */
        void kill() throws InterruptedException {
            process.destroyForcibly().waitFor();
        }
    }

    /** Worker one holds `stall` and is killed with it; worker two does the rest and then that one, redelivered. */
    private static void workQueue() throws Exception {
        try (Connection connection = connect(); Channel channel = connection.createChannel()) {
            String queue = freshQueue(channel, "java.task_queue", true);
            BasicProperties persistent = MessageProperties.PERSISTENT_TEXT_PLAIN;
            List<Worker> workers = new ArrayList<>();
            try {
                workers.add(new Worker(queue));
                channel.basicPublish("", queue, persistent, bytes("stall"));
                workers.get(0).expect("got stall false 2");
                workers.add(new Worker(queue));
                for (String task : List.of("task 1", "task 2", "task 3")) {
                    // Prefetch 1 keeps them away from the busy worker, where plain round robin would give it every other one.
                    channel.basicPublish("", queue, persistent, bytes(task));
                    workers.get(1).expect("got " + task + " false 2");
                }
                var state = channel.queueDeclarePassive(queue);
                same(List.of(state.getMessageCount(), state.getConsumerCount()), List.of(0, 2), "queue with two workers");
                workers.get(0).kill();
                workers.get(1).expect("got stall true 2");
                channel.basicPublish("", queue, persistent, bytes("task 4"));
                workers.get(1).expect("got task 4 false 2");
            } finally {
                for (Worker worker : workers) {
                    worker.kill();
                }
            }
            long deadline = System.currentTimeMillis() + STEP_LIMIT_MS;
            while (channel.consumerCount(queue) > 0) {
                same(System.currentTimeMillis() < deadline, true, "the workers' end within its limit");
                Thread.sleep(10);
            }
            // Task 4 was perhaps acked before the second kill, perhaps not; nothing else may be left.
            GetResponse left = channel.basicGet(queue, true);
            if (left != null) {
                same(new String(left.getBody(), StandardCharsets.UTF_8), "task 4", "leftover");
                same(left.getEnvelope().isRedeliver(), true, "leftover redelivered");
            }
            dropQueue(channel, queue);
        }
    }

    /** The reply code with which the broker refuses to show a queue on a new channel. */
    private static int refusal(Connection connection, String queue) throws Exception {
        try {
            connection.createChannel().queueDeclarePassive(queue);
        } catch (IOException failure) {
            var closed = (ShutdownSignalException) failure.getCause();
            same(closed.isHardError(), false, "connection closed");
            return ((com.rabbitmq.client.AMQP.Channel.Close) closed.getReason()).getReplyCode();
        }
        throw new AssertionError("the broker did not refuse");
    }

    private record Subscriber(Connection connection, Channel channel, String queue) { }

    private static void publishSubscribe() throws Exception {
        String exchange = "java.logs";
        try (Connection connection = connect(); Channel channel = connection.createChannel()) {
            channel.exchangeDelete(exchange);
            channel.exchangeDeclare(exchange, BuiltinExchangeType.FANOUT);
            channel.basicPublish(exchange, "", null, bytes("before anybody listened"));
            List<Subscriber> subscribers = new ArrayList<>();
            for (int number = 0; number < 2; number++) {
                Connection own = connect();
                Channel listening = own.createChannel();
                String queue = exclusiveQueue(listening);
                same(queue.startsWith("amq.gen-"), true, "generated name of " + queue);
                listening.queueBind(queue, exchange, "");
                subscribers.add(new Subscriber(own, listening, queue));
            }
            same(subscribers.stream().map(Subscriber::queue).distinct().count(), 2L, "different names");
            List<String> lines = numbered(20);
            for (String line : lines) {
                channel.basicPublish(exchange, "ignored." + line, null, bytes(line));
            }
            for (Subscriber subscriber : subscribers) {
                List<Delivery> received = receive(subscriber.channel(), subscriber.queue(), lines.size(), true);
                same(bodies(received), lines, "every subscriber's lines");
                same(received.stream().anyMatch(delivery -> delivery.getEnvelope().isRedeliver()), false, "redelivered");
            }
            String queue = subscribers.get(0).queue();
            same(refusal(connection, queue), 405, "exclusive queue seen by another connection");
            for (Subscriber subscriber : subscribers) {
                subscriber.connection().close();
            }
            same(refusal(connection, queue), 404, "exclusive queue after its connection");
            channel.exchangeDelete(exchange);
        }
    }

    private record Subscription(List<String> bindingKeys, List<String> expectedKeys) { }

    private static void topics() throws Exception {
        String exchange = "java.topic_logs";
        List<String> keys =
            List.of("kern.critical", "kern.info", "auth.critical", "auth.info", "kern", "kern.disk.critical", "NYSE");
        List<Subscription> subscriptions = List.of(
            new Subscription(List.of("#"), keys),
            new Subscription(List.of("kern.*"), List.of("kern.critical", "kern.info")),
            // Two binding keys of one queue match kern.critical: it gets one copy.
            new Subscription(List.of("kern.*", "*.critical"), List.of("kern.critical", "kern.info", "auth.critical")),
            new Subscription(List.of("kern.#"), List.of("kern.critical", "kern.info", "kern", "kern.disk.critical")),
            new Subscription(List.of("*"), List.of("kern", "NYSE")),
            new Subscription(List.of("NYSE"), List.of("NYSE")));
        try (Connection connection = connect(); Channel channel = connection.createChannel()) {
            channel.exchangeDelete(exchange);
            channel.exchangeDeclare(exchange, BuiltinExchangeType.TOPIC);
            List<String> queues = new ArrayList<>();
            for (Subscription subscription : subscriptions) {
                String queue = exclusiveQueue(channel);
                for (String key : subscription.bindingKeys()) {
                    channel.queueBind(queue, exchange, key);
                }
                queues.add(queue);
            }
            for (String key : keys) {
                BasicProperties properties = new BasicProperties.Builder().headers(Map.of("key", key)).build();
                channel.basicPublish(exchange, key, properties, bytes("about " + key));
            }
            for (int index = 0; index < queues.size(); index++) {
                List<String> expected = subscriptions.get(index).expectedKeys();
                List<Delivery> received = receive(channel, queues.get(index), expected.size(), false);
                same(received.stream().map(delivery -> delivery.getEnvelope().getRoutingKey()).toList(), expected, "routing keys");
                same(bodies(received), expected.stream().map(key -> "about " + key).toList(), "bodies");
                same(received.stream().map(delivery -> delivery.getProperties().getHeaders().get("key").toString()).toList(),
                    expected, "headers");
                dropQueue(channel, queues.get(index));
            }
            channel.exchangeDelete(exchange);
        }
    }

    private static int fibonacci(int number) {
        return number < 2 ? number : fibonacci(number - 1) + fibonacci(number - 2);
    }

    private static void rpc() throws Exception {
        try (Connection server = connect(); Channel serving = server.createChannel();
                Connection client = connect(); Channel channel = client.createChannel()) {
            String queue = freshQueue(serving, "java.rpc_queue", false);
            BlockingQueue<Integer> served = new LinkedBlockingQueue<>();
            serving.basicQos(1);
            serving.basicConsume(queue, false, (consumerTag, request) -> {
                int number = Integer.parseInt(text(request));
                var properties = request.getProperties();
                BasicProperties reply = new BasicProperties.Builder().correlationId(properties.getCorrelationId()).build();
                serving.basicPublish("", properties.getReplyTo(), reply, bytes(Integer.toString(fibonacci(number))));
                serving.basicAck(request.getEnvelope().getDeliveryTag(), false);
                served.add(number);
            }, consumerTag -> { });

            String callbackQueue = channel.queueDeclare().getQueue();
            BlockingQueue<Delivery> replies = new LinkedBlockingQueue<>();
            channel.basicConsume(callbackQueue, true, (consumerTag, reply) -> replies.add(reply), consumerTag -> { });
            Map<String, String> answers = new HashMap<>();
            Map<String, String> expectedAnswers = new HashMap<>();
            List<Integer> numbers = new ArrayList<>(List.of(25));
            numbers.addAll(IntStream.range(0, 20).boxed().toList());
            for (int number : numbers) {
                BasicProperties properties =
                    new BasicProperties.Builder().correlationId("call-" + number).replyTo(callbackQueue).build();
                channel.basicPublish("", queue, properties, bytes(Integer.toString(number)));
                expectedAnswers.put("call-" + number, Integer.toString(fibonacci(number)));
            }
            for (int count = 0; count < numbers.size(); count++) {
                Delivery reply = take(replies, "reply");
                same(answers.put(reply.getProperties().getCorrelationId(), text(reply)), null, "earlier reply to the same call");
            }
            same(answers, expectedAnswers, "replies");
            List<Integer> order = new ArrayList<>();
            for (int count = 0; count < numbers.size(); count++) {
                order.add(take(served, "request"));
            }
            same(order, numbers, "requests in order");
            dropQueue(serving, queue);
        }
    }

    private static void confirms() throws Exception {
        try (Connection connection = connect(); Channel channel = connection.createChannel()) {
            String queue = freshQueue(channel, "java.confirms", true);
            List<String> expected = numbered(1000);
            channel.confirmSelect();
            // One by one.
            for (String body : expected.subList(0, 20)) {
                channel.basicPublish("", queue, MessageProperties.PERSISTENT_TEXT_PLAIN, bytes(body));
                channel.waitForConfirmsOrDie(STEP_LIMIT_MS);
            }
            same(channel.messageCount(queue), 20L, "confirmed and there");
            // In a batch.
            for (String body : expected.subList(20, 220)) {
                channel.basicPublish("", queue, MessageProperties.PERSISTENT_TEXT_PLAIN, bytes(body));
            }
            channel.waitForConfirmsOrDie(STEP_LIMIT_MS);
            same(channel.messageCount(queue), 220L, "confirmed and there");
            // As they come: every tag is confirmed once, alone or by a later one with multiple.
            ConcurrentSkipListSet<Long> outstanding = new ConcurrentSkipListSet<>();
            BlockingQueue<Integer> settled = new LinkedBlockingQueue<>();
            AtomicReference<String> failure = new AtomicReference<>();
            channel.addConfirmListener((tag, isMultiple) -> {
                var confirmed = isMultiple ? outstanding.headSet(tag, true) : outstanding.subSet(tag, true, tag, true);
                int count = confirmed.size();
                if (!outstanding.contains(tag)) {
                    failure.set("tag " + tag + " is not outstanding");
                }
                confirmed.clear();
                settled.add(count);
            }, (tag, isMultiple) -> failure.set("nack of " + tag));
            for (String body : expected.subList(220, 1000)) {
                outstanding.add(channel.getNextPublishSeqNo());
                channel.basicPublish("", queue, MessageProperties.PERSISTENT_TEXT_PLAIN, bytes(body));
            }
            for (int count = 0; count < 780;) {
                count += take(settled, "confirms of the stream");
            }
            same(failure.get(), null, "failure of a confirm");
            same(outstanding.isEmpty(), true, "all confirmed");
            // Unroutable and mandatory: returned, and confirmed after that.
            BlockingQueue<String> returned = new LinkedBlockingQueue<>();
            channel.addReturnListener(message ->
                returned.add(message.getReplyCode() + " " + new String(message.getBody(), StandardCharsets.UTF_8)));
            outstanding.add(channel.getNextPublishSeqNo());
            channel.basicPublish("", "java.no.such.queue", true, MessageProperties.PERSISTENT_TEXT_PLAIN, bytes("lost"));
            same(take(settled, "confirm of a returned message"), 1, "settled");
            same(List.copyOf(returned), List.of("312 lost"), "returned before it was confirmed");

            List<Delivery> received = receive(channel, queue, expected.size(), false);
            same(bodies(received), expected, "bodies");
            same(received.stream().allMatch(delivery -> delivery.getProperties().getDeliveryMode() == 2), true, "all persistent");
            dropQueue(channel, queue);
        }
    }
}
