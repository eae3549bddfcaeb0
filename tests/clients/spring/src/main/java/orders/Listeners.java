package orders;

import com.rabbitmq.client.Channel;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.support.AmqpHeaders;
import org.springframework.messaging.handler.annotation.Header;
import org.springframework.stereotype.Component;

/** The listeners, and what they have seen. */
@Component
class Listeners {
    final Set<Integer> handled = ConcurrentHashMap.newKeySet();
    final AtomicInteger poisonAttempts = new AtomicInteger();
    final List<Map<String, ?>> deaths = new CopyOnWriteArrayList<>();
    final List<String> keysOfLate = new CopyOnWriteArrayList<>();
    final List<String> news = new CopyOnWriteArrayList<>();
    final List<Boolean> manual = new CopyOnWriteArrayList<>();

    /** Acknowledged by the container: after the return, or rejected when the retries are used up. */
    @RabbitListener(queues = "spring.placed", concurrency = "2")
    void placed(Order order, @Header(AmqpHeaders.RECEIVED_ROUTING_KEY) String key) {
        if (order.kind().equals("poison")) {
            poisonAttempts.incrementAndGet();
            throw new IllegalStateException("poison");
        }
        if (order.kind().equals("late")) keysOfLate.add(key);
        handled.add(order.number());
    }

    @RabbitListener(queues = "spring.dead")
    void dead(Message message) {
        deaths.addAll(message.getMessageProperties().getXDeathHeader());
    }

    @RabbitListener(queues = "#{inbox.name}")
    void news(String line) {
        news.add(line);
    }

    /** The answer goes to where the request says, by direct reply-to or to a queue. */
    @RabbitListener(queues = "spring.quotes")
    String quote(String goods) {
        return "price of " + goods;
    }

    /** Acknowledged by hand, the first time negatively. */
    @RabbitListener(queues = "spring.manual", ackMode = "MANUAL")
    void manual(
        String text,
        Channel channel,
        @Header(AmqpHeaders.DELIVERY_TAG) long tag,
        @Header(AmqpHeaders.REDELIVERED) boolean isRedelivered
    ) throws java.io.IOException {
        manual.add(isRedelivered);
        if (isRedelivered) channel.basicAck(tag, false);
        else channel.basicNack(tag, false, true);
    }
}
