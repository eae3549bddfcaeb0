//! Rounds of work and sudden death on one data directory.
//!
//! ```text
//!  start --> read out all queues, check --> work --> end: kill -9, kill -9 and again during the restart, SIGTERM at work or at rest
//!    ^                                                 |
//!    +-------------------------------------------------+
//! ```
//!
//! A seed repeats all choices, but not the interleaving of threads and processes: a failure usually comes back within some rounds of
//! the same seed. The data directory of a failed campaign stays where the report says.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::content::{fingerprint, message, observed, priority};
use super::history::Event;
use super::moving::Moving;
use super::people::People;
use super::random::Random;
use super::recorder::Recorder;
use super::topology::{self, ExtraQueues};
use super::verdict::Readout;
use super::workload::{self, Shared, WORKERS};
use crate::support::TestBroker;
use crate::support::raw::{Client, Delivered, Outcome};

/// How long a round waits for its number of events; a broker that does less in this time is killed all the same.
const ROUND_LIMIT: Duration = Duration::from_secs(20);
/// How long the workers may take to come to rest; far more than they need, because test machines are busy.
const REST_LIMIT: Duration = Duration::from_secs(120);
/// A round has up to `2^bits` events; short ones are as likely as long ones.
const ROUND_EVENTS_BITS: u32 = 12;
/// And up to `2^bits` steps of messages that move.
const ROUND_STEPS_BITS: u32 = 9;
/// A restart is interrupted within so many microseconds.
const INTERRUPT_WITHIN_US: u64 = 60_000;
/// The channel that declares, probes and asks.
const CONTROL: u16 = 1;

/// What to run.
pub(crate) struct Campaign {
    /// Name of the test, for its directory.
    pub(crate) name: &'static str,
    /// Arguments of the broker.
    pub(crate) arguments: &'static [&'static str],
    /// Rounds when the environment does not say.
    pub(crate) rounds: u64,
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// SIGKILL at work.
    Kill,
    /// SIGKILL at work, and again during the restart.
    KillTwice,
    /// SIGTERM at work.
    Stop,
    /// SIGTERM when all is quiet.
    QuietStop,
}

impl Ending {
    /// Every kind within eight rounds, mostly the plain one.
    fn of_round(round: u64) -> Self {
        match round % 8 {
            2 => Self::QuietStop,
            4 => Self::KillTwice,
            6 => Self::Stop,
            _ => Self::Kill,
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

impl Campaign {
    /// Runs all rounds.
    #[expect(
        clippy::print_stdout,
        reason = "the seed must be known when a round fails"
    )]
    pub(crate) fn run(&self) {
        let rounds = from_environment("STRATAMQ_CRASH_ROUNDS").unwrap_or(self.rounds);
        let seed = from_environment("STRATAMQ_CRASH_SEED").unwrap_or_else(fresh_seed);
        let directory =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}-{seed}", self.name));
        // Left over from an earlier failure with this seed.
        let _ = std::fs::remove_dir_all(&directory);
        println!(
            "{}: seed {seed}, {rounds} rounds, data in {}",
            self.name,
            directory.display()
        );
        let mut run = Run::start(self, &directory, seed);
        for round in 0..rounds {
            if let Err(complaint) = run.round(Ending::of_round(round)) {
                panic!(
                    "{}: round {round} of seed {seed}, data in {}: {complaint}",
                    self.name,
                    directory.display()
                );
            }
        }
        let events = run.shared.recorder.event_count();
        let census = run.shared.moving.census();
        drop(run);
        println!(
            "{}: {rounds} rounds, {events} events, moved: {census}",
            self.name
        );
        let _ = std::fs::remove_dir_all(&directory);
    }
}

fn fresh_seed() -> u64 {
    let nanoseconds = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |elapsed| elapsed.subsec_nanos());
    u64::from(nanoseconds)
}

struct Run {
    broker: TestBroker,
    shared: Shared,
    people: People,
    random: Random,
}

impl Run {
    fn start(campaign: &Campaign, directory: &std::path::Path, seed: u64) -> Self {
        let mut builder = TestBroker::builder().data_dir(directory);
        for argument in campaign.arguments {
            builder = builder.arg(argument);
        }
        let broker = builder.start();
        let shared = Shared {
            recorder: Recorder::new(),
            extras: ExtraQueues::default(),
            moving: Moving::new(),
            address: broker.address(),
            should_rest: false.into(),
            is_ending: false.into(),
            resting_count: 0.into(),
            early_count: 0.into(),
        };
        let mut client = Client::connect(shared.address);
        client.open_channel(CONTROL);
        topology::declare(&mut client, CONTROL);
        Moving::declare(&mut client, CONTROL);
        topology::bind(&mut client, CONTROL);
        Moving::bind(&mut client, CONTROL);
        client.close();
        Self {
            broker,
            shared,
            people: People::default(),
            random: Random::new(seed),
        }
    }

    /// Works, ends the broker, starts it again, and checks.
    fn round(&mut self, ending: Ending) -> Result<(), String> {
        self.work(ending)?;
        if ending == Ending::KillTwice {
            for _ in 0..=self.random.below(2) {
                let after = Duration::from_micros(self.random.below(INTERRUPT_WITHIN_US));
                self.broker.restart_interrupted(after);
            }
        }
        self.broker.restart();
        self.check()
            .map_err(|complaint| format!("after {ending:?}: {complaint}"))
    }

    /// Lets the workers work until the broker's end.
    fn work(&mut self, ending: Ending) -> Result<(), String> {
        let Self {
            broker,
            shared,
            random,
            ..
        } = self;
        shared.should_rest.store(false, Ordering::SeqCst);
        shared.is_ending.store(false, Ordering::SeqCst);
        shared.resting_count.store(0, Ordering::SeqCst);
        shared.early_count.store(0, Ordering::SeqCst);
        let events = usize::try_from(1 + random.skewed(ROUND_EVENTS_BITS)).unwrap_or(1);
        let steps = usize::try_from(random.skewed(ROUND_STEPS_BITS)).unwrap_or(0);
        let pause = Duration::from_micros(random.below(2000));
        let shared = &*shared;
        let (outcome, worked) = std::thread::scope(|scope| {
            let threads = WORKERS.map(|work| {
                let random = random.fork();
                scope.spawn(move || workload::run(shared, random, work))
            });
            let goal = shared.recorder.event_count() + events;
            let is_over = || shared.early_count.load(Ordering::SeqCst) > 0;
            let steps_goal = shared.moving.step_count() + steps;
            shared.recorder.wait_for_events(goal, ROUND_LIMIT, is_over);
            let has_moved = || is_over() || shared.moving.step_count() >= steps_goal;
            shared
                .recorder
                .wait_for_events(usize::MAX, ROUND_LIMIT, has_moved);
            // Else every kill would come right after something that the client noticed.
            std::thread::sleep(pause);
            let outcome = end(broker, shared, ending);
            (
                outcome,
                threads.map(|thread| thread.join().expect("workers do not panic")),
            )
        });
        let is_quiet = ending == Ending::QuietStop;
        shared.recorder.record(match ending {
            Ending::Kill | Ending::KillTwice => Event::Killed,
            Ending::Stop | Ending::QuietStop => Event::Stopped { is_quiet },
        });
        shared
            .moving
            .ended(!matches!(ending, Ending::Stop | Ending::QuietStop));
        worked
            .into_iter()
            .collect::<Result<(), String>>()
            .map_err(|trouble| format!("at work: {trouble}"))?;
        outcome
    }

    /// Compares what the restarted broker holds with what it must hold.
    fn check(&mut self) -> Result<(), String> {
        let mut client = Client::connect(self.shared.address);
        topology::check_fleeting_is_gone(&mut client, CONTROL)?;
        client.open_channel(CONTROL);
        topology::declare(&mut client, CONTROL);
        Moving::declare(&mut client, CONTROL);
        topology::declare_fleeting(&mut client, CONTROL);
        self.probe(&mut client)
            .map_err(|trouble| format!("probing: {trouble}"))?;
        let mut readout = Readout::new();
        let mut reads = Vec::new();
        for (channel, queue) in (CONTROL + 1..).zip(topology::all_queues()) {
            let read = self.read_out(&mut client, channel, queue);
            let list = read.map_err(|trouble| format!("reading queue {queue}: {trouble}"))?;
            readout.insert(queue.to_owned(), list.iter().map(observed).collect());
            reads.push((channel, queue, list));
        }
        self.shared.recorder.check(&readout)?;
        for (channel, queue, list) in reads {
            self.give_back(&mut client, channel, queue, &list)
                .map_err(|trouble| trouble.to_string())?;
        }
        client.close_channel(CONTROL);
        self.shared.extras.check(&mut client, CONTROL)?;
        self.shared.moving.check(&mut client, &mut self.random)?;
        client.close();
        self.people.check(&self.broker)?;
        self.people.change_one(&self.broker, &mut self.random)?;
        self.shared
            .moving
            .change_policy(&self.broker, &mut self.random)
    }

    /// Sends a transient message along every route: whether the bindings are there shows in the queues.
    fn probe(&mut self, client: &mut Client) -> Outcome<()> {
        let recorder = &self.shared.recorder;
        let publisher = recorder.new_channel();
        client.try_confirm_select(CONTROL)?;
        for route in topology::all_routes() {
            let id = recorder.new_message();
            let message = message(id, false);
            recorder.record(Event::Publish {
                id,
                publisher,
                tx: None,
                is_persistent: false,
                priority: priority(&message),
                targets: route
                    .targets
                    .iter()
                    .map(|queue| (*queue).to_owned())
                    .collect(),
                fingerprint: fingerprint(&message, route.exchange, route.routing_key),
            });
            client.try_publish(CONTROL, route.exchange, route.routing_key, &message)?;
            client.try_wait_confirm(CONTROL)?;
            recorder.record(Event::Confirmed { id });
        }
        Ok(())
    }

    /// All messages of a queue, unacknowledged on a channel of their own: by a consumer or one by one.
    fn read_out(
        &mut self,
        client: &mut Client,
        channel: u16,
        queue: &str,
    ) -> Outcome<Vec<Delivered>> {
        client.try_open_channel(channel)?;
        let mut list = Vec::new();
        if self.random.percent(50) {
            let declared =
                client.try_queue_declare(channel, queue, crate::support::raw::passive())?;
            client.try_consume(channel, queue, queue)?;
            for _ in 0..declared.message_count {
                list.push(client.try_next_delivery(channel)?);
            }
            client.try_cancel(channel, queue)?;
        }
        // After a consumer nothing should be left; if there is, the oracle judges it.
        while let Some(delivered) = client.try_get(channel, queue)? {
            list.push(delivered);
        }
        Ok(list)
    }

    /// Gives the messages back, or takes them all, so that queues do not grow for ever.
    fn give_back(
        &mut self,
        client: &mut Client,
        channel: u16,
        queue: &str,
        list: &[Delivered],
    ) -> Outcome<()> {
        let last = list.iter().map(|delivered| delivered.tag).max();
        if let (Some(last), true) = (last, self.random.percent(35)) {
            let key = self.shared.recorder.new_channel();
            for id in list.iter().filter_map(|delivered| observed(delivered).id) {
                let queue = queue.to_owned();
                self.shared.recorder.record(Event::Ack {
                    queue,
                    id,
                    channel: key,
                    tx: None,
                });
            }
            client.try_ack(channel, last, true)?;
            client.try_qos(channel, 0)?;
            self.shared.recorder.record(Event::Synced { channel: key });
        }
        client.try_close_channel(channel)
    }
}

/// Ends the broker.
fn end(broker: &mut TestBroker, shared: &Shared, ending: Ending) -> Result<(), String> {
    if ending == Ending::QuietStop {
        shared.should_rest.store(true, Ordering::SeqCst);
        let is_quiet = || {
            let resting = shared.resting_count.load(Ordering::SeqCst);
            resting + shared.early_count.load(Ordering::SeqCst) >= WORKERS.len()
        };
        shared
            .recorder
            .wait_for_events(usize::MAX, REST_LIMIT, is_quiet);
        if !is_quiet() {
            // Ends the workers too.
            shared.is_ending.store(true, Ordering::SeqCst);
            broker.kill();
            return Err(format!(
                "the workers did not come to rest in {REST_LIMIT:?}"
            ));
        }
    }
    shared.is_ending.store(true, Ordering::SeqCst);
    if matches!(ending, Ending::Kill | Ending::KillTwice) {
        broker.kill();
        return Ok(());
    }
    shared.recorder.record(Event::Stopping);
    let status = broker.terminate();
    if !status.success() {
        return Err(format!("ended with {status} after SIGTERM"));
    }
    Ok(())
}
