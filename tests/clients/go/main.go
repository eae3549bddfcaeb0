// RabbitMQ's tutorials and publisher confirms, played with an unmodified amqp091-go against any broker.
//
//	tutorials [URL]          or AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2f tutorials
//
// Prints `ok NAME` for each scenario; the first deviation goes to standard error with exit code 1. Ends by itself within timeLimit.
// `tutorials worker URL QUEUE` is the worker process of the work queue.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// Against hanging only: a busy machine may be slow.
	timeLimit = 600 * time.Second
	stepLimit = 60 * time.Second
)

var url = "amqp://guest:guest@127.0.0.1:5672/%2f"

func main() {
	log.SetFlags(log.Lshortfile)
	if len(os.Args) == 4 && os.Args[1] == "worker" {
		work(os.Args[2], os.Args[3])
		return
	}
	if fromEnvironment := os.Getenv("AMQP_URL"); fromEnvironment != "" {
		url = fromEnvironment
	}
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	time.AfterFunc(timeLimit, func() { log.Fatalf("not done within %v", timeLimit) })
	for _, scenario := range []struct {
		name string
		play func()
	}{
		{"hello_world", helloWorld},
		{"work_queue", workQueue},
		{"publish_subscribe", publishSubscribe},
		{"topics", topics},
		{"rpc", rpc},
		{"confirms", confirms},
	} {
		scenario.play()
		fmt.Println("ok", scenario.name)
	}
}

// must ends the program with the caller's line when a call has failed.
func must(err error) {
	if err != nil {
		_ = log.Output(2, err.Error())
		os.Exit(1)
	}
}

// same ends the program with the caller's line when a value is not what it must be.
func same(actual, expected any, what string) {
	if !reflect.DeepEqual(actual, expected) {
		_ = log.Output(2, fmt.Sprintf("%s: expected %v, got %v", what, expected, actual))
		os.Exit(1)
	}
}

func connect() (*amqp.Connection, *amqp.Channel) {
	connection, err := amqp.Dial(url)
	must(err)
	return connection, open(connection)
}

func open(connection *amqp.Connection) *amqp.Channel {
	channel, err := connection.Channel()
	must(err)
	return channel
}

func publish(channel *amqp.Channel, exchange, key string, message amqp.Publishing) {
	must(channel.PublishWithContext(context.Background(), exchange, key, false, false, message))
}

func text(body string) amqp.Publishing {
	return amqp.Publishing{ContentType: "text/plain", Body: []byte(body)}
}

func persistent(body string) amqp.Publishing {
	return amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)}
}

func freshQueue(channel *amqp.Channel, name string, durable bool) string {
	_, err := channel.QueueDelete(name, false, false, false)
	must(err)
	queue, err := channel.QueueDeclare(name, durable, false, false, false, nil)
	must(err)
	same(queue, amqp.Queue{Name: name}, "fresh queue")
	return name
}

// dropQueue deletes a queue that must be empty by now.
func dropQueue(channel *amqp.Channel, name string) {
	left, err := channel.QueueDelete(name, false, false, false)
	must(err)
	same(left, 0, "messages left in "+name)
}

// receive consumes count messages and stops; a message too many that was on its way fails.
func receive(channel *amqp.Channel, queue string, count int, autoAck bool) []amqp.Delivery {
	deliveries, err := channel.Consume(queue, "receive "+queue, autoAck, false, false, false, nil)
	must(err)
	received := []amqp.Delivery{}
	take := func(delivery amqp.Delivery) {
		received = append(received, delivery)
		if !autoAck {
			must(delivery.Ack(false))
		}
	}
	for len(received) < count {
		take(next(deliveries, queue))
	}
	must(channel.Cancel("receive "+queue, false))
	for delivery := range deliveries {
		take(delivery)
	}
	same(len(received), count, "messages of "+queue)
	return received
}

func next(deliveries <-chan amqp.Delivery, queue string) amqp.Delivery {
	select {
	case delivery, isOpen := <-deliveries:
		same(isOpen, true, "consumer of "+queue+" goes on")
		return delivery
	case <-time.After(stepLimit):
		log.Fatalf("timed out waiting for a message of %s", queue)
		panic("unreachable")
	}
}

func bodies(deliveries []amqp.Delivery) []string {
	texts := []string{}
	for _, delivery := range deliveries {
		texts = append(texts, string(delivery.Body))
	}
	return texts
}

func numbered(count int) []string {
	texts := []string{}
	for number := range count {
		texts = append(texts, fmt.Sprintf("message %d", number))
	}
	return texts
}

func helloWorld() {
	sender, sending := connect()
	queue := freshQueue(sending, "go.hello", false)
	publish(sending, "", queue, text("Hello World!"))
	must(sender.Close())

	receiver, channel := connect()
	declared, err := channel.QueueDeclare(queue, false, false, false, false, nil)
	must(err)
	same(declared.Messages, 1, "redeclared with its message")
	message := receive(channel, queue, 1, true)[0]
	same(string(message.Body), "Hello World!", "body")
	same([]string{message.Exchange, message.RoutingKey, message.ContentType}, []string{"", queue, "text/plain"}, "address and type")
	same(message.DeliveryTag, uint64(1), "delivery tag")
	same(message.Redelivered, false, "redelivered")
	dropQueue(channel, queue)
	must(receiver.Close())
}

// work takes one task at a time, writes `got BODY REDELIVERED MODE` for each and acks it, except a new `stall`: that one it holds
// until somebody kills the process.
func work(url, queue string) {
	connection, err := amqp.Dial(url)
	must(err)
	channel := open(connection)
	must(channel.Qos(1, 0, false))
	tasks, err := channel.Consume(queue, "", false, false, false, false, nil)
	must(err)
	fmt.Println("ready")
	for task := range tasks {
		fmt.Println("got", string(task.Body), task.Redelivered, task.DeliveryMode)
		if string(task.Body) != "stall" || task.Redelivered {
			must(task.Ack(false))
		}
	}
	log.Fatal("the worker's connection broke")
}

type worker struct {
	process *exec.Cmd
	lines   chan string
}

func startWorker(queue string) *worker {
	self, err := os.Executable()
	must(err)
	started := &worker{exec.Command(self, "worker", url, queue), make(chan string)}
	output, err := started.process.StdoutPipe()
	must(err)
	started.process.Stderr = os.Stderr
	must(started.process.Start())
	go func(output io.Reader) {
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			started.lines <- scanner.Text()
		}
	}(output)
	started.expect("ready")
	return started
}

func (started *worker) expect(line string) {
	select {
	case said := <-started.lines:
		same(said, line, "worker")
	case <-time.After(stepLimit):
		log.Fatalf("worker said nothing, expected %q", line)
	}
}

// kill sends SIGKILL and waits for the end.
func (started *worker) kill() {
	must(started.process.Process.Kill())
	_ = started.process.Wait()
}

// workQueue: worker one holds `stall` and is killed with it; worker two does the rest and then that one, redelivered.
func workQueue() {
	connection, channel := connect()
	queue := freshQueue(channel, "go.task_queue", true)
	first := startWorker(queue)
	publish(channel, "", queue, persistent("stall"))
	first.expect("got stall false 2")
	second := startWorker(queue)
	for _, task := range []string{"task 1", "task 2", "task 3"} {
		// Prefetch 1 keeps them away from the busy worker, where plain round robin would give it every other one.
		publish(channel, "", queue, persistent(task))
		second.expect("got " + task + " false 2")
	}
	state, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	must(err)
	same(state, amqp.Queue{Name: queue, Messages: 0, Consumers: 2}, "queue with two workers")
	first.kill()
	second.expect("got stall true 2")
	publish(channel, "", queue, persistent("task 4"))
	second.expect("got task 4 false 2")
	second.kill()
	for deadline := time.Now().Add(stepLimit); state.Consumers > 0; time.Sleep(10 * time.Millisecond) {
		same(time.Now().Before(deadline), true, "the workers' end within its limit")
		state, err = channel.QueueDeclarePassive(queue, true, false, false, false, nil)
		must(err)
	}
	// Task 4 was perhaps acked before the second kill, perhaps not; nothing else may be left.
	if left, isThere, err := channel.Get(queue, true); isThere {
		same(string(left.Body), "task 4", "leftover")
		same(left.Redelivered, true, "leftover redelivered")
	} else {
		must(err)
	}
	dropQueue(channel, queue)
	must(connection.Close())
}

// refusal is the reply code with which the broker refuses to show a queue on a new channel.
func refusal(connection *amqp.Connection, queue string) int {
	_, err := open(connection).QueueDeclarePassive(queue, false, false, true, false, nil)
	var refused *amqp.Error
	if !errors.As(err, &refused) {
		log.Fatalf("expected a refusal, got %v", err)
	}
	return refused.Code
}

func publishSubscribe() {
	connection, channel := connect()
	const exchange = "go.logs"
	must(channel.ExchangeDelete(exchange, false, false))
	must(channel.ExchangeDeclare(exchange, "fanout", false, false, false, false, nil))
	publish(channel, exchange, "", text("before anybody listened"))
	type subscriber struct {
		connection *amqp.Connection
		channel    *amqp.Channel
		queue      string
	}
	subscribers := []subscriber{}
	for range 2 {
		own, listening := connect()
		queue, err := listening.QueueDeclare("", false, false, true, false, nil)
		must(err)
		same(strings.HasPrefix(queue.Name, "amq.gen-"), true, "generated name of "+queue.Name)
		must(listening.QueueBind(queue.Name, "", exchange, false, nil))
		subscribers = append(subscribers, subscriber{own, listening, queue.Name})
	}
	same(subscribers[0].queue != subscribers[1].queue, true, "names differ")
	lines := numbered(20)
	for _, line := range lines {
		publish(channel, exchange, "ignored."+line, text(line))
	}
	for _, each := range subscribers {
		received := receive(each.channel, each.queue, len(lines), true)
		same(bodies(received), lines, "every subscriber's lines")
		same(slices.ContainsFunc(received, func(message amqp.Delivery) bool { return message.Redelivered }), false, "redelivered")
	}
	same(refusal(connection, subscribers[0].queue), amqp.ResourceLocked, "exclusive queue seen by another connection")
	for _, each := range subscribers {
		must(each.connection.Close())
	}
	same(refusal(connection, subscribers[0].queue), amqp.NotFound, "exclusive queue after its connection")
	must(channel.ExchangeDelete(exchange, false, false))
	must(connection.Close())
}

func topics() {
	keys := []string{"kern.critical", "kern.info", "auth.critical", "auth.info", "kern", "kern.disk.critical", "NYSE"}
	expected := []struct{ bindings, keys []string }{
		{[]string{"#"}, keys},
		{[]string{"kern.*"}, []string{"kern.critical", "kern.info"}},
		// Two binding keys of one queue match kern.critical: it gets one copy.
		{[]string{"kern.*", "*.critical"}, []string{"kern.critical", "kern.info", "auth.critical"}},
		{[]string{"kern.#"}, []string{"kern.critical", "kern.info", "kern", "kern.disk.critical"}},
		{[]string{"*"}, []string{"kern", "NYSE"}},
		{[]string{"NYSE"}, []string{"NYSE"}},
	}
	connection, channel := connect()
	const exchange = "go.topic_logs"
	must(channel.ExchangeDelete(exchange, false, false))
	must(channel.ExchangeDeclare(exchange, "topic", false, false, false, false, nil))
	queues := []string{}
	for _, each := range expected {
		queue, err := channel.QueueDeclare("", false, false, true, false, nil)
		must(err)
		for _, key := range each.bindings {
			must(channel.QueueBind(queue.Name, key, exchange, false, nil))
		}
		queues = append(queues, queue.Name)
	}
	for _, key := range keys {
		message := text("about " + key)
		message.Headers = amqp.Table{"key": key}
		publish(channel, exchange, key, message)
	}
	for index, each := range expected {
		received := receive(channel, queues[index], len(each.keys), false)
		for position, message := range received {
			key := each.keys[position]
			same([]any{message.Exchange, message.RoutingKey, string(message.Body)}, []any{exchange, key, "about " + key}, "message")
			same(message.Headers, amqp.Table{"key": key}, "headers")
		}
		dropQueue(channel, queues[index])
	}
	must(channel.ExchangeDelete(exchange, false, false))
	must(connection.Close())
}

func fibonacci(number int) int {
	before, now := 0, 1
	for range number {
		before, now = now, before+now
	}
	return before
}

func rpc() {
	const requestCount = 21
	server, serving := connect()
	queue := freshQueue(serving, "go.rpc_queue", false)
	must(serving.Qos(1, 0, false))
	requests, err := serving.Consume(queue, "", false, false, false, false, nil)
	must(err)
	served := make(chan []int)
	go func() {
		numbers := []int{}
		for len(numbers) < requestCount {
			request := next(requests, queue)
			number, err := strconv.Atoi(string(request.Body))
			must(err)
			reply := text(strconv.Itoa(fibonacci(number)))
			reply.CorrelationId = request.CorrelationId
			publish(serving, "", request.ReplyTo, reply)
			must(request.Ack(false))
			numbers = append(numbers, number)
		}
		served <- numbers
	}()

	client, channel := connect()
	callback, err := channel.QueueDeclare("", false, false, true, false, nil)
	must(err)
	replies, err := channel.Consume(callback.Name, "", true, true, false, false, nil)
	must(err)
	expectedServed, answers := []int{}, map[string]string{}
	call := func(number int) {
		request := text(strconv.Itoa(number))
		request.CorrelationId, request.ReplyTo = fmt.Sprintf("call-%d", number), callback.Name
		publish(channel, "", queue, request)
		expectedServed = append(expectedServed, number)
	}
	await := func() {
		reply := next(replies, callback.Name)
		_, isKnown := answers[reply.CorrelationId]
		same(isKnown, false, "a second reply to "+reply.CorrelationId)
		answers[reply.CorrelationId] = string(reply.Body)
	}
	call(30)
	await()
	same(answers, map[string]string{"call-30": "832040"}, "first reply")
	expectedAnswers := map[string]string{"call-30": "832040"}
	for number := range requestCount - 1 {
		call(number)
		expectedAnswers[fmt.Sprintf("call-%d", number)] = strconv.Itoa(fibonacci(number))
	}
	for range requestCount - 1 {
		await()
	}
	same(answers, expectedAnswers, "replies")
	same(<-served, expectedServed, "requests in order")
	dropQueue(serving, queue)
	must(client.Close())
	must(server.Close())
}

// confirmed waits for one outstanding confirm, which must be an ack.
func confirmed(pending *amqp.DeferredConfirmation, tag uint64) {
	limit, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	isAck, err := pending.WaitContext(limit)
	must(err)
	same(isAck, true, "confirm is an ack")
	same(pending.DeliveryTag, tag, "confirm's tag")
}

func confirms() {
	connection, channel := connect()
	queue := freshQueue(channel, "go.confirms", true)
	must(channel.Confirm(false))
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))
	expected := numbered(1000)
	tag := uint64(0)
	submit := func(key string, mandatory bool, body string) *amqp.DeferredConfirmation {
		tag++
		pending, err := channel.PublishWithDeferredConfirmWithContext(
			context.Background(), "", key, mandatory, false, persistent(body))
		must(err)
		return pending
	}
	inBatches := func(texts []string, batchSize int) {
		for batch := range slices.Chunk(texts, batchSize) {
			pending := []*amqp.DeferredConfirmation{}
			firstTag := tag + 1
			for _, body := range batch {
				pending = append(pending, submit(queue, false, body))
			}
			for index, each := range pending {
				confirmed(each, firstTag+uint64(index))
			}
		}
	}
	inBatches(expected[:20], 1)
	state, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	must(err)
	same(state.Messages, 20, "confirmed and there")
	inBatches(expected[20:220], 100)

	// As they come: the library hands out each confirm once, in order of publishing.
	stream := channel.NotifyPublish(make(chan amqp.Confirmation, len(expected)))
	firstTag := tag + 1
	for _, body := range expected[220:] {
		submit(queue, false, body)
	}
	for awaited := firstTag; awaited <= tag; awaited++ {
		select {
		case confirmation := <-stream:
			same(confirmation, amqp.Confirmation{DeliveryTag: awaited, Ack: true}, "confirm of the stream")
		case <-time.After(stepLimit):
			log.Fatalf("timed out waiting for confirm %d", awaited)
		}
	}

	// Unroutable and mandatory: returned, and confirmed after that.
	confirmed(submit("go.no.such.queue", true, "lost"), tag)
	select {
	case returned := <-returns:
		same([]any{returned.ReplyCode, returned.ReplyText, string(returned.Body)}, []any{uint16(312), "NO_ROUTE", "lost"}, "return")
	default:
		log.Fatal("confirmed before it was returned")
	}
	received := receive(channel, queue, len(expected), false)
	same(bodies(received), expected, "bodies")
	same(slices.ContainsFunc(received, func(message amqp.Delivery) bool { return message.DeliveryMode != amqp.Persistent }),
		false, "transient ones among the persistent")
	dropQueue(channel, queue)
	must(connection.Close())
}
