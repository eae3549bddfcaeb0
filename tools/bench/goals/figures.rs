//! The goals: what is wanted of which figure.
//!
//! Figures are called `PROBE/WHAT`, such as `transient 16 B/per CPU`; what there is, `probes` says.

use std::collections::BTreeMap;

/// What was measured in a round.
pub(super) type Figures = BTreeMap<String, f64>;

/// Which side of a number is good.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A goal.
pub(super) struct Goal {
    pub(super) about: &'static str,
    /// Of one round; `None` when something it needs was not measured.
    pub(super) figure: fn(&Figures) -> Option<f64>,
    pub(super) bound: Bound,
    /// Digits behind the point that are shown.
    pub(super) digits: usize,
}

fn get(figures: &Figures, name: &str) -> Option<f64> {
    figures.get(name).copied()
}

fn ratio(figures: &Figures, above: &str, below: &str) -> Option<f64> {
    Some(get(figures, above)? / get(figures, below)?.max(f64::MIN_POSITIVE))
}

fn excess(figures: &Figures, figure: &str, base: &str) -> Option<f64> {
    Some(get(figures, figure)? - get(figures, base)?)
}

macro_rules! goals {
    ($($about:literal, $bound:ident $wanted:literal, $digits:literal: $figure:expr;)*) => {
        &[$(Goal { about: $about, figure: $figure, bound: Bound::$bound($wanted), digits: $digits },)*]
    };
}

/// All of them, in the order in which they are shown.
pub(super) const GOALS: &[Goal] = goals! {
    "transient 16 B, msg/CPU s", AtLeast 2e6, 0: |of| get(of, "transient 16 B/per CPU");
    "  socket limit / rate", AtMost 3.0, 2: |of| get(of, "transient 16 B/of sockets");
    "  socket limit / rate, per CPU s", AtMost 3.0, 2: |of| get(of, "transient 16 B/of sockets' CPU");
    "transient 1 KiB, msg/CPU s", AtLeast 0.8e6, 0: |of| get(of, "transient 1 KiB/per CPU");
    "  socket limit / rate", AtMost 3.0, 2: |of| get(of, "transient 1 KiB/of sockets");
    "  socket limit / rate, per CPU s", AtMost 3.0, 2: |of| get(of, "transient 1 KiB/of sockets' CPU");
    "durable window 1000, msg/CPU s", AtLeast 0.45e6, 0: |of| get(of, "durable window 1000/per CPU");
    "  disk's commits / rate", AtMost 1.5, 2: |of| get(of, "durable window 1000/of disk");
    "durable window 100, msg/CPU s", AtLeast 0.25e6, 0: |of| get(of, "durable window 100/per CPU");
    "  disk's commits / rate", AtMost 1.5, 2: |of| get(of, "durable window 100/of disk");
    "window 1, confirm p50 - fdatasync p50, us", AtMost 100.0, 0: |of| {
        excess(of, "durable window 1/confirm p50", "durable window 1/fdatasync p50")
    };
    "window 1, confirm p99 - fdatasync p99, us", AtMost 500.0, 0: |of| {
        excess(of, "durable window 1/confirm p99", "durable window 1/fdatasync p99")
    };
    "fan-out to 5, deliveries/CPU s", AtLeast 0.85e6, 0: |of| get(of, "fan-out 5/per CPU");
    "fan-out, CPU ns of a queue more", AtMost 150.0, 0: |of| get(of, "cost of fan-out/ns of a queue");
    "fan-out of 1 KiB, memory bytes of a queue more", AtMost 102.0, 0: |of| {
        get(of, "cost of fan-out/memory of a queue")
    };
    "fan-out of 1 KiB, disk bytes of a queue more", AtMost 102.0, 0: |of| {
        get(of, "cost of fan-out/disk of a queue")
    };
    "10 x 10 x 10, per CPU s of a pair's, window 100", AtLeast 0.9, 2: |of| {
        ratio(of, "10 x 10 x 10/per CPU", "durable window 100/per CPU")
    };
    "10 x 10 x 10, per CPU s of a pair's, window 1000", AtLeast 0.9, 2: |of| {
        ratio(of, "10 x 10 x 10, window 1000/per CPU", "durable window 1000/per CPU")
    };
    // In the two above every publisher goes round all queues, here it keeps to its own.
    "  the same, each publisher to its own queue", AtLeast 0.9, 2: |of| {
        ratio(of, "10 x 10 x 10, own queues/per CPU", "durable window 1000/per CPU")
    };
    // Ten windows of 100 against one of 1000: as many messages under way, from ten times the sockets.
    "  the same with 1,000 under way in all", AtLeast 0.9, 2: |of| {
        ratio(of, "10 x 10 x 10/per CPU", "durable window 1000/per CPU")
    };
    "1,000 queues, rate of one queue's", AtLeast 0.9, 2: |of| {
        ratio(of, "1000 queues/per second", "one queue/per second")
    };
    "1,000 queues, per CPU s of one queue's", AtLeast 0.75, 2: |of| {
        ratio(of, "1000 queues/per CPU", "one queue/per CPU")
    };
    "1 MiB bodies, disk's sequential rate / rate", AtMost 1.5, 2: |of| {
        ratio(of, "1 MiB bodies/sequential", "1 MiB bodies/per second")
    };
    "1 MiB bodies, rate of 1,000/s or the disk's", AtLeast 1.0, 2: |of| {
        let wanted = get(of, "1 MiB bodies/sequential")?.min(1000.0);
        Some(get(of, "1 MiB bodies/per second")? / wanted)
    };
    "backlog 1 KiB published, msg/CPU s", AtLeast 0.7e6, 0: |of| get(of, "backlog/publish per CPU");
    "backlog drained cold, msg/CPU s", AtLeast 1.4e6, 0: |of| get(of, "backlog/drain per CPU");
    "RPC direct reply-to, p50 of an echo's", AtMost 2.5, 2: |of| ratio(of, "RPC/direct p50", "RPC/echo p50");
    "RPC reply queue, p50 of an echo's", AtMost 2.5, 2: |of| ratio(of, "RPC/queue p50", "RPC/echo p50");
    "idle connection, bytes", AtMost 12288.0, 0: |of| get(of, "idle/bytes of a connection");
    "idle queue, bytes", AtMost 1024.0, 0: |of| get(of, "idle/bytes of a queue");
    "idle, processors taken", AtMost 0.01, 4: |of| get(of, "idle/CPU");
    "empty broker, RSS in MB", AtMost 15.0, 1: |of| get(of, "idle/empty MB");
};
