package orders;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ShutdownSignalException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Scanner;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.springframework.amqp.AmqpException;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;
import org.springframework.amqp.rabbit.connection.ChannelListener;
import org.springframework.amqp.rabbit.connection.CorrelationData;
import org.springframework.amqp.rabbit.core.RabbitAdmin;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.amqp.core.AmqpAdmin;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;

/**
 * A Spring Boot application on Spring AMQP, unmodified, and the checks on it.
 *
 * <p>Takes the broker's URL, prints {@code ok NAME} for each scenario; the first deviation is a stack trace and exit code 1. It writes
 * {@code restart broker} when it wants the broker killed and started again, and goes on when a line on standard input says that this
 * is done. Ends by itself within TIME_LIMIT_MS.
 */
@SpringBootApplication
public class Application {
    // Against hanging only: a busy machine may be slow.
    private static final long TIME_LIMIT_MS = 600_000;
    private static final long STEP_LIMIT_MS = 60_000;

    private final RabbitTemplate template;
    private final RabbitAdmin admin;
    private final Listeners listeners;

    Application(RabbitTemplate template, AmqpAdmin admin, Listeners listeners) {
        this.template = template;
        this.admin = (RabbitAdmin) admin;
        this.listeners = listeners;
    }

    public static void main(String[] arguments) {
        Thread limit = new Thread(() -> {
            try {
                Thread.sleep(TIME_LIMIT_MS);
            } catch (InterruptedException end) {
                return;
            }
            System.err.println("not done after " + TIME_LIMIT_MS + " ms");
            Runtime.getRuntime().halt(1);
        });
        limit.setDaemon(true);
        limit.start();
        // Spring takes the vhost as it stands, undecoded; without one it is the default one.
        String address = arguments[0].replaceFirst("/%2[fF]$", "");
        try (var context = SpringApplication.run(Application.class, "--spring.rabbitmq.addresses=" + address)) {
            context.getBean(Application.class).play();
        } catch (Throwable failure) {
            failure.printStackTrace();
            System.exit(1);
        }
        System.exit(0);
    }

    private void play() throws Exception {
        declarations();
        confirmsAndReturns();
        listenersAndDeadLetters();
        repliesAndManualAcks();
        restartedMeanwhile();
    }

    // ---------------------------------------------------------------------------------------------------------- scenarios

    /** RabbitAdmin's declarations are there, and it can look at queues. */
    private void declarations() {
        Properties placed = admin.getQueueProperties("spring.placed");
        same(placed.get(RabbitAdmin.QUEUE_MESSAGE_COUNT), 0, "messages");
        until(() -> Objects.equals(admin.getQueueProperties("spring.placed").get(RabbitAdmin.QUEUE_CONSUMER_COUNT), 2), "consumers");
        same(admin.getQueueProperties("spring.absent"), null, "a queue that is not there");
        done("declarations");
    }

    /** Correlated confirms; a message that nobody gets comes back before its confirm; so does a publish to no exchange, refused. */
    private void confirmsAndReturns() throws Exception {
        List<CorrelationData> sent = new ArrayList<>();
        for (int number = 0; number < 200; number++) {
            var correlation = new CorrelationData("order-" + number);
            template.convertAndSend("spring.orders", "order.placed", new Order(number, "plain"), correlation);
            sent.add(correlation);
        }
        for (CorrelationData one : sent) same(confirm(one).isAck(), true, "confirm of " + one.getId());
        until(() -> listeners.handled.size() == 200, "all orders");

        var nobody = new CorrelationData("nobody");
        template.convertAndSend("spring.orders", "elsewhere", "x", nobody);
        same(confirm(nobody).isAck(), true, "confirm of a returned message");
        same(nobody.getReturned().getReplyCode(), 312, "reply code");
        same(nobody.getReturned().getReplyText(), "NO_ROUTE", "reply text");

        // Spring's reason of the nack is no witness: whether it names the broker's channel.close or the channel's return to the cache
        // depends on which of two of its threads comes first.
        List<Integer> closedWith = new CopyOnWriteArrayList<>();
        ((CachingConnectionFactory) template.getConnectionFactory()).addChannelListener(closes(closedWith));
        var refused = new CorrelationData("refused");
        template.convertAndSend("spring.no-such-exchange", "x", "x", refused);
        same(confirm(refused).isAck(), false, "confirm of a refused message");
        until(() -> !closedWith.isEmpty(), "the end of the refused publish's channel");
        same(closedWith, List.of(404), "what channels were closed with");
        done("confirms_and_returns");
    }

    /** Retries in the listener, then the dead-letter queue; a detour over a queue with a time to live. */
    private void listenersAndDeadLetters() {
        template.convertAndSend("spring.orders", "order.placed", new Order(1000, "poison"));
        until(() -> !listeners.deaths.isEmpty(), "the dead letter");
        same(listeners.poisonAttempts.get(), 3, "attempts");
        Map<String, ?> death = listeners.deaths.get(0);
        same(death.get("reason"), "rejected", "reason");
        same(death.get("queue"), "spring.placed", "queue");
        same(death.get("count"), 1L, "count");
        same(death.get("exchange"), "spring.orders", "exchange");
        same(death.get("routing-keys"), List.of("order.placed"), "routing keys");

        template.convertAndSend("", "spring.later", new Order(1001, "late"));
        until(() -> listeners.handled.contains(1001), "the late order");
        same(listeners.keysOfLate, List.of("order.later"), "its routing key");
        done("listeners_and_dead_letters");
    }

    /** Request and reply by direct reply-to, which is the template's default; manual acknowledgement; fanout to an anonymous queue. */
    private void repliesAndManualAcks() {
        for (int number = 0; number < 20; number++) {
            same(template.convertSendAndReceive("spring.quotes", (Object) ("tea " + number)), "price of tea " + number, "reply");
        }
        template.convertAndSend("spring.manual", (Object) "again");
        until(() -> listeners.manual.size() == 2, "the second delivery");
        same(listeners.manual, List.of(false, true), "redelivered");
        template.convertAndSend("spring.news", "", "hello");
        until(() -> listeners.news.contains("hello"), "news");
        String result = template.invoke(operations -> {
            operations.convertAndSend("spring.orders", "order.placed", new Order(1002, "plain"));
            operations.waitForConfirmsOrDie(STEP_LIMIT_MS);
            return "confirmed";
        });
        same(result, "confirmed", "waitForConfirms");
        done("replies_and_manual_acks");
    }

    /** The broker is killed twice under load: the containers come back, RabbitAdmin declares again, nothing confirmed is lost. */
    private void restartedMeanwhile() throws Exception {
        int first = 2000;
        int count = 300;
        var answers = new Scanner(System.in);
        for (int number = first; number < first + count; number++) {
            if (number == first + 100 || number == first + 200) {
                System.out.println("restart broker");
                same(answers.nextLine(), "restarted", "the answer of the test");
            }
            sendUntilConfirmed(new Order(number, "plain"));
        }
        for (int number = first; number < first + count; number++) {
            int wanted = number;
            until(() -> listeners.handled.contains(wanted), "order " + number);
        }
        // The exchange and the anonymous queue were transient.
        until(() -> {
            try {
                template.convertAndSend("spring.news", "", "back");
            } catch (AmqpException gone) {
                return false;
            }
            return listeners.news.contains("back");
        }, "news after the restart");
        for (String queue : List.of("spring.placed", "spring.dead", "spring.later", "spring.quotes", "spring.manual")) {
            same(admin.getQueueProperties(queue).get(RabbitAdmin.QUEUE_MESSAGE_COUNT), 0, "left in " + queue);
        }
        done("restarted_meanwhile");
    }

    private void sendUntilConfirmed(Order order) throws Exception {
        long end = System.currentTimeMillis() + STEP_LIMIT_MS;
        while (System.currentTimeMillis() < end) {
            try {
                var correlation = new CorrelationData();
                template.convertAndSend("spring.orders", "order.placed", order, correlation);
                if (confirm(correlation).isAck()) return;
            } catch (AmqpException gone) {
                Thread.sleep(50);
            }
        }
        throw new AssertionError("never confirmed: " + order);
    }

    // ------------------------------------------------------------------------------------------------------------- helpers

    private static CorrelationData.Confirm confirm(CorrelationData one) throws Exception {
        return one.getFuture().get(STEP_LIMIT_MS, TimeUnit.MILLISECONDS);
    }

    /** Notes the reply code of each channel that the broker closes. */
    private static ChannelListener closes(List<Integer> replyCodes) {
        return new ChannelListener() {
            @Override
            public void onCreate(Channel channel, boolean transactional) {}

            @Override
            public void onShutDown(ShutdownSignalException signal) {
                if (signal.isInitiatedByApplication()) return;
                if (signal.getReason() instanceof AMQP.Channel.Close close) replyCodes.add(close.getReplyCode());
            }
        };
    }

    private static void done(String name) {
        System.out.println("ok " + name);
    }

    private static void same(Object actual, Object expected, String what) {
        if (!Objects.equals(actual, expected)) {
            throw new AssertionError(what + ": expected " + expected + ", got " + actual);
        }
    }

    private static void until(BooleanSupplier isSo, String what) {
        long end = System.currentTimeMillis() + STEP_LIMIT_MS;
        while (!isSo.getAsBoolean()) {
            if (System.currentTimeMillis() > end) throw new AssertionError("never: " + what);
            try {
                Thread.sleep(20);
            } catch (InterruptedException interrupted) {
                throw new AssertionError(interrupted);
            }
        }
    }
}
