package orders;

import org.springframework.amqp.core.AnonymousQueue;
import org.springframework.amqp.core.Binding;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.DirectExchange;
import org.springframework.amqp.core.FanoutExchange;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.core.TopicExchange;
import org.springframework.amqp.support.converter.Jackson2JsonMessageConverter;
import org.springframework.amqp.support.converter.MessageConverter;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/** What RabbitAdmin declares when a connection opens, the first time and after each restart of the broker. */
@Configuration
class Topology {
    @Bean
    TopicExchange orders() {
        return new TopicExchange("spring.orders", true, false);
    }

    @Bean
    DirectExchange deadLetters() {
        return new DirectExchange("spring.dead", true, false);
    }

    @Bean
    FanoutExchange news() {
        return new FanoutExchange("spring.news", false, true);
    }

    @Bean
    Queue placed() {
        return QueueBuilder.durable("spring.placed").deadLetterExchange("spring.dead").deadLetterRoutingKey("placed").build();
    }

    @Bean
    Queue dead() {
        return QueueBuilder.durable("spring.dead").build();
    }

    /** Waits a second, then dead-letters back to the queue of placed orders. */
    @Bean
    Queue later() {
        return QueueBuilder.durable("spring.later")
            .ttl(1000)
            .deadLetterExchange("spring.orders")
            .deadLetterRoutingKey("order.later")
            .build();
    }

    @Bean
    Queue quotes() {
        return QueueBuilder.durable("spring.quotes").build();
    }

    @Bean
    Queue manual() {
        return QueueBuilder.durable("spring.manual").singleActiveConsumer().build();
    }

    @Bean
    Queue inbox() {
        return new AnonymousQueue();
    }

    @Bean
    Binding placedOrders(Queue placed, TopicExchange orders) {
        return BindingBuilder.bind(placed).to(orders).with("order.#");
    }

    @Bean
    Binding deadOrders(Queue dead, DirectExchange deadLetters) {
        return BindingBuilder.bind(dead).to(deadLetters).with("placed");
    }

    @Bean
    Binding newsInbox(Queue inbox, FanoutExchange news) {
        return BindingBuilder.bind(inbox).to(news);
    }

    @Bean
    MessageConverter json() {
        return new Jackson2JsonMessageConverter("orders");
    }
}
