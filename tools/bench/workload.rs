//! The loads that the broker is measured with, and what one measurement of a load gives.

use crate::args::{AckMode, Args};
use crate::broker::Broker;
use crate::error::BenchError;
use crate::raw::CommitLoop;
use crate::report::{Report, count, rate};
use crate::run;
use crate::stand_in::StandIn;
use crate::url::Url;
use serde::Serialize;

/// A load with a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    publishers: u32,
    consumers: u32,
    queues: u32,
    is_fanout: bool,
    /// Each publisher publishes to a queue of its own, as with one application per queue, and not to all of them in turn.
    has_own_queues: bool,
    body_bytes: usize,
    /// Of each publisher.
    window: usize,
    is_durable: bool,
    ack: AckMode,
    prefetch: u16,
}

const TRANSIENT: Workload = Workload {
    name: "transient 16 B",
    publishers: 1,
    consumers: 1,
    queues: 1,
    is_fanout: false,
    has_own_queues: false,
    body_bytes: 16,
    window: 0,
    is_durable: false,
    ack: AckMode::Auto,
    prefetch: 500,
};
const DURABLE: Workload = Workload {
    name: "durable window 1",
    body_bytes: 1024,
    window: 1,
    is_durable: true,
    ack: AckMode::Manual,
    ..TRANSIENT
};
const FANOUT: Workload = Workload {
    name: "fan-out 5",
    consumers: 5,
    queues: 5,
    is_fanout: true,
    body_bytes: 1024,
    window: 100,
    ..TRANSIENT
};

/// Bytes of a large body.
pub(crate) const LARGE_BODY_BYTES: usize = 1 << 20;

/// All loads.
pub(crate) const WORKLOADS: [Workload; 14] = [
    TRANSIENT,
    Workload {
        name: "transient 1 KiB",
        body_bytes: 1024,
        ..TRANSIENT
    },
    DURABLE,
    Workload {
        name: "durable window 100",
        window: 100,
        ..DURABLE
    },
    Workload {
        name: "durable window 1000",
        window: 1000,
        ..DURABLE
    },
    FANOUT,
    Workload {
        name: "fan-out 100",
        consumers: 5,
        queues: 100,
        ..FANOUT
    },
    Workload {
        name: "durable fan-out 5",
        is_durable: true,
        ack: AckMode::Manual,
        ..FANOUT
    },
    Workload {
        name: "10 x 10 x 10",
        publishers: 10,
        consumers: 10,
        queues: 10,
        window: 100,
        ..DURABLE
    },
    Workload {
        name: "10 x 10 x 10, window 1000",
        publishers: 10,
        consumers: 10,
        queues: 10,
        window: 1000,
        ..DURABLE
    },
    Workload {
        name: "10 x 10 x 10, own queues",
        publishers: 10,
        consumers: 10,
        queues: 10,
        has_own_queues: true,
        window: 1000,
        ..DURABLE
    },
    // The same but for the queues, and next to each other in time.
    Workload {
        name: "one queue",
        publishers: 4,
        window: 250,
        ..DURABLE
    },
    Workload {
        name: "1000 queues",
        publishers: 4,
        queues: 1000,
        window: 250,
        ..DURABLE
    },
    Workload {
        name: "1 MiB bodies",
        body_bytes: LARGE_BODY_BYTES,
        window: 32,
        prefetch: 64,
        ..DURABLE
    },
];

/// What one run of a load came to, with a broker or with the stand-in.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Deliveries; of a load that nobody consumes, messages confirmed.
    pub(crate) per_sec: f64,
    /// For each second of the other side's processor time.
    pub(crate) per_cpu_sec: f64,
    /// Of the processors, how much the other side and the generator took: 1.0 is one processor.
    pub(crate) cpu_share: f64,
    pub(crate) generator_cpu_share: f64,
    pub(crate) confirm_p50_us: f64,
    pub(crate) confirm_p99_us: f64,
    /// Messages published for each fdatasync, and bytes that were written with it.
    pub(crate) messages_per_commit: f64,
    pub(crate) bytes_per_commit: f64,
    pub(crate) bytes_per_message: f64,
}

impl Workload {
    pub(crate) fn is_durable(&self) -> bool {
        self.is_durable
    }

    pub(crate) fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Deliveries of one message.
    pub(crate) fn copies(&self) -> u32 {
        if self.is_fanout { self.queues } else { 1 }
    }

    /// The flags of a run of `secs`.
    pub(crate) fn load(&self, url: Url, secs: u64) -> Args {
        Args {
            publishers: self.publishers,
            consumers: self.consumers,
            queues: self.queues,
            fanout: self.is_fanout,
            own_queues: self.has_own_queues,
            body_size: self.body_bytes,
            window: self.window,
            transient: !self.is_durable,
            durable: self.is_durable,
            ack: self.ack,
            prefetch: self.prefetch,
            duration: Some(secs),
            ..Args::defaults(url)
        }
    }

    /// Runs it on a broker.
    pub(crate) fn measure(&self, broker: &Broker, secs: u64) -> Result<Figures, BenchError> {
        run(&Args {
            pid: broker.pid(),
            data_dir: Some(broker.data_dir()),
            ..self.load(broker.url(), secs)
        })
    }

    /// Runs it on a stand-in.
    pub(crate) fn measure_stand_in(&self, secs: u64) -> Result<Figures, BenchError> {
        let url = "amqp://127.0.0.1";
        let url = url.parse().map_err(BenchError::Protocol)?;
        let load = self.load(url, secs);
        let stand_in = StandIn::for_load(&load)?;
        run(&Args {
            url: stand_in.url(),
            pid: Some(stand_in.pid()),
            takes_any_delivery: true,
            ..load
        })
    }
}

/// Runs a load that must not fail.
pub(crate) fn run(load: &Args) -> Result<Figures, BenchError> {
    load.check().map_err(BenchError::Protocol)?;
    let report = run::run(load)?;
    match report.failures().first() {
        None => Ok(Figures::of(&report)),
        Some(failure) => Err(BenchError::Protocol(failure.clone())),
    }
}

impl Figures {
    fn of(report: &Report) -> Self {
        let per_sec = match report.consumed_count {
            0 if report.confirmed_count > 0 => report.confirmed_per_sec,
            0 => report.published_per_sec,
            _ => report.consumed_per_sec,
        };
        let done = report.consumed_count.max(report.published_count);
        let secs = count(done) / per_sec.max(1.0);
        let share = |cpu_secs: f64| cpu_secs / secs.max(f64::MIN_POSITIVE);
        let latency = report.confirm_latency.as_ref();
        let log = report.log;
        let syncs = log.map_or(0, |log| log.fdatasync_count);
        let messages = log.map_or(0, |log| log.messages);
        let bytes = log.map_or(0, |log| log.bytes);
        Self {
            per_sec,
            per_cpu_sec: report.messages_per_broker_cpu_sec.unwrap_or(0.0),
            cpu_share: share(report.broker_cpu_secs.unwrap_or(0.0)),
            generator_cpu_share: share(report.generator_cpu_secs),
            confirm_p50_us: latency.map_or(0.0, |latency| latency.p50_ms * 1e3),
            confirm_p99_us: latency.map_or(0.0, |latency| latency.p99_ms * 1e3),
            messages_per_commit: rate(messages, count(syncs)),
            bytes_per_commit: rate(bytes, count(syncs)),
            bytes_per_message: rate(bytes, count(messages)),
        }
    }
}

/// What no broker could do better in a run: the socket's limit, and the disk's.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Limits {
    pub(crate) socket: Figures,
    /// `None` for what is not written.
    pub(crate) disk: Option<CommitLoop>,
}

/// A load on the broker and, right after it, its limits.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) broker: Figures,
    pub(crate) limits: Limits,
}

impl Measured {
    pub(crate) fn of(workload: &Workload, broker: &Broker, secs: u64) -> Result<Self, BenchError> {
        let figures = workload.measure(broker, secs)?;
        let socket = workload.measure_stand_in(secs)?;
        let disk = workload.is_durable().then(|| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a size in bytes; the loop bounds it"
            )]
            let bytes = figures.bytes_per_commit as u64;
            CommitLoop::measure(broker.directory(), bytes, secs.div_ceil(2))
        });
        Ok(Self {
            broker: figures,
            limits: Limits {
                socket,
                disk: disk.transpose()?,
            },
        })
    }

    /// Deliveries a second that the disk allows with commits as large as the run's.
    pub(crate) fn disk_per_sec(&self, copies: u32) -> Option<f64> {
        let disk = self.limits.disk?;
        Some(disk.commits_per_sec * self.broker.messages_per_commit * f64::from(copies))
    }
}

/// Measures every case once a round, every second round backwards: a machine that changes its speed from minute to minute favours
/// none of them. The measurements of a case stand in the order of the rounds.
pub(crate) fn interleave<C, M>(
    cases: &[C],
    rounds: u32,
    mut measure: impl FnMut(u32, &C) -> Result<M, BenchError>,
) -> Result<Vec<Vec<M>>, BenchError> {
    let mut measured: Vec<Vec<M>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let mut order: Vec<(&C, &mut Vec<M>)> = cases.iter().zip(&mut measured).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (case, measured) in order {
            measured.push(measure(round, case)?);
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_has_a_name_of_its_own_and_flags_that_fit() {
        let url: Url = "amqp://127.0.0.1".parse().expect("an address");
        for (index, workload) in WORKLOADS.iter().enumerate() {
            workload.load(url.clone(), 1).check().expect("it can run");
            let others = WORKLOADS.iter().skip(index + 1);
            assert!(others.clone().all(|other| other.name != workload.name));
        }
    }

    #[test]
    fn rounds_go_there_and_back() {
        let mut order = String::new();
        let measured = interleave(&["a", "b", "c"], 3, |round, case| {
            order += case;
            Ok((round, *case))
        });
        assert_eq!(order, "abccbaabc");
        let measured = measured.expect("nothing fails");
        assert_eq!(measured[0], [(0, "a"), (1, "a"), (2, "a")]);
    }

    #[test]
    fn the_disk_allows_what_its_commits_hold() {
        let disk = CommitLoop {
            batch_bytes: 1000,
            commits_per_sec: 200.0,
            p50_us: 0.0,
            p99_us: 0.0,
        };
        let mut measured = Measured {
            broker: Figures {
                messages_per_commit: 30.0,
                ..Figures::default()
            },
            limits: Limits {
                socket: Figures::default(),
                disk: Some(disk),
            },
        };
        let allowed = measured.disk_per_sec(5).expect("there is a disk");
        assert!((allowed - 30_000.0).abs() < 1e-6);
        measured.limits.disk = None;
        assert_eq!(measured.disk_per_sec(5), None);
    }
}
