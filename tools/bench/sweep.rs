//! What a message costs the broker against the size of everything it might depend on.
//!
//! | along | what grows | what stays |
//! |---|---|---|
//! | connections | publishers, each a connection of its own | one queue, one consumer |
//! | queues | queues that the messages go round | one publisher, one consumer |
//! | bindings | bindings of a topic exchange, words with some `*` and `#`; more keys than a connection remembers | one queue |
//! | backlog published, drained | messages of a durable queue | bodies of 1 KiB |
//! | body | bytes of a body | one queue |
//!
//! The cost is the broker's processor time for a message, which a generator on the same machine disturbs less than the rate. All points
//! are measured in rounds, there and back, each with a fixed number of messages. The column `x10` says by how much the cost grew in
//! the step from the point before, reckoned for a tenfold one: 1 is constant, 10 is linear, and above 2 it is worse than logarithmic.
//! Below the table stands why, for axes with such a step.

use crate::args::{AckMode, Args};
use crate::broker::{Broker, OwnArgs};
use crate::error::BenchError;
use crate::plot::{self, Curve};
use crate::restart;
use crate::table::{Grid, Table, median};
use crate::workload::{self, Figures, interleave};
use serde::Serialize;
use std::path::PathBuf;

/// Bytes of all bodies of a point, at most: large bodies come in smaller numbers.
const BODIES_MAX_BYTES: u64 = 1 << 30;
/// A cost that is at most logarithmic does not grow by more in a tenfold step: from 10 to 100 the logarithm doubles, later it grows
/// by less.
const LOGARITHMIC_MAX: f64 = 2.0;
/// Cells of the longest bar.
const BAR_CELLS: usize = 30;

/// How far.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SweepArgs {
    /// How often all of it is repeated; medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Messages of a point; of a backlog the point itself says it.
    #[arg(long, default_value = "200k", value_parser = restart::count)]
    messages: u64,
    /// Points beyond this are left out.
    #[arg(long, default_value = "1M", value_parser = restart::count)]
    max: u64,
    /// Only axes whose name contains this: connections, queues, bindings, backlog, body.
    #[arg(long, default_value = "")]
    case: String,
    /// Write the plot to this file as SVG.
    #[arg(long)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Axis {
    Connections,
    Queues,
    Bindings,
    BacklogPublished,
    BacklogDrained,
    Body,
}

impl Axis {
    const ALL: [Self; 6] = [
        Self::Connections,
        Self::Queues,
        Self::Bindings,
        Self::BacklogPublished,
        Self::BacklogDrained,
        Self::Body,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Queues => "queues",
            Self::Bindings => "bindings",
            Self::BacklogPublished => "backlog published",
            Self::BacklogDrained => "backlog drained",
            Self::Body => "body bytes",
        }
    }

    /// Why the cost may grow by more than the logarithm somewhere along the axis; `None` where nothing accounts for it.
    fn reason(self) -> Option<&'static str> {
        match self {
            Self::Queues => Some(
                "a queue that was used long ago has left the processor's caches and is fetched from memory again; the step comes once",
            ),
            Self::Body => Some(
                "each byte is read from a socket, copied into the message, copied into the output, written to a socket",
            ),
            Self::Connections | Self::Bindings | Self::BacklogPublished | Self::BacklogDrained => {
                None
            }
        }
    }

    fn points(self) -> &'static [u64] {
        match self {
            Self::Connections => &[1, 3, 10, 30, 100, 300],
            Self::Queues => &[1, 10, 100, 1000, 10_000],
            Self::Bindings => &[10, 100, 1000, 10_000, 100_000],
            Self::BacklogPublished | Self::BacklogDrained => &[30_000, 100_000, 300_000, 1_000_000],
            Self::Body => &[16, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576],
        }
    }
}

/// A place on an axis.
#[derive(Clone, Copy, Debug, Serialize)]
struct Point {
    axis: Axis,
    at: u64,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct SweepReport {
    points: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    point: Point,
    /// 0 when it was too short to be counted.
    cpu_ns_per_message: f64,
    per_sec: f64,
    /// The cost's growth for a tenfold step, since the point before that was counted; `None` of the first.
    growth_of_a_tenfold: Option<f64>,
    rounds: Vec<Figures>,
}

pub(crate) fn run(args: &SweepArgs) -> Result<SweepReport, BenchError> {
    let points = points(args);
    if points.is_empty() {
        let text = format!(
            "no axis with a point up to {} contains '{}'",
            args.max, args.case
        );
        return Err(BenchError::Protocol(text));
    }
    let (broker, _) = Broker::start(&args.own)?;
    let rounds = interleave(&points, args.rounds, |_, point| {
        measure(args, &broker, *point)
    })?;
    let report = SweepReport::new(&points, rounds);
    if let Some(path) = &args.svg {
        let what = format!("writing {}", path.display());
        std::fs::write(path, plot::svg(&report.curves())).map_err(BenchError::io(what))?;
    }
    Ok(report)
}

fn points(args: &SweepArgs) -> Vec<Point> {
    let chosen = Axis::ALL
        .into_iter()
        .filter(|axis| axis.name().contains(&args.case));
    let points =
        chosen.flat_map(|axis| axis.points().iter().map(move |at| Point { axis, at: *at }));
    points.filter(|point| point.at <= args.max).collect()
}

fn measure(args: &SweepArgs, broker: &Broker, point: Point) -> Result<Figures, BenchError> {
    let at = u32::try_from(point.at).unwrap_or(u32::MAX);
    let plain = Args {
        transient: true,
        durable: false,
        ack: AckMode::Auto,
        body_size: 16,
        count: Some(args.messages),
        pid: broker.pid(),
        ..Args::defaults(broker.url())
    };
    let load = match point.axis {
        Axis::Connections => Args {
            publishers: at,
            ..plain
        },
        Axis::Queues => Args {
            queues: at,
            ..plain
        },
        Axis::Bindings => Args {
            topic_bindings: at,
            ..plain
        },
        Axis::Body => Args {
            body_size: usize::try_from(point.at).unwrap_or(usize::MAX),
            count: Some(args.messages.min(BODIES_MAX_BYTES / point.at).max(1)),
            ..plain
        },
        Axis::BacklogPublished | Axis::BacklogDrained => Args {
            transient: false,
            durable: true,
            ack: AckMode::Manual,
            body_size: 1024,
            consumers: 0,
            window: 1000,
            prefetch: 2000,
            count: Some(point.at),
            keep: true,
            ..plain
        },
    };
    let figures = workload::run(&load)?;
    match point.axis {
        Axis::BacklogDrained => workload::run(&drain(&load)),
        Axis::BacklogPublished => {
            workload::run(&drain(&load))?;
            Ok(figures)
        }
        _ => Ok(figures),
    }
}

fn drain(load: &Args) -> Args {
    Args {
        publishers: 0,
        consumers: 1,
        count: None,
        keep: false,
        ..load.clone()
    }
}

impl SweepReport {
    fn new(points: &[Point], rounds: Vec<Vec<Figures>>) -> Self {
        let mut measured: Vec<Measured> = Vec::new();
        for (point, rounds) in points.iter().zip(rounds) {
            // A round whose processor time was too short to be counted says nothing.
            let counted = rounds.iter().filter(|figures| figures.per_cpu_sec > 0.0);
            let cpu_ns_per_message = median(counted.map(|figures| 1e9 / figures.per_cpu_sec));
            let of_axis = |before: &&Measured| before.point.axis == point.axis;
            let counted = measured
                .iter()
                .filter(|before| before.cpu_ns_per_message > 0.0);
            let before = counted.rev().find(of_axis);
            let before = before.filter(|_| cpu_ns_per_message > 0.0);
            let before = before.map(|before| (before.point.at, before.cpu_ns_per_message));
            measured.push(Measured {
                point: *point,
                cpu_ns_per_message,
                per_sec: median(rounds.iter().map(|figures| figures.per_sec)),
                growth_of_a_tenfold: before
                    .map(|before| growth_of_a_tenfold(before, (point.at, cpu_ns_per_message))),
                rounds,
            });
        }
        Self { points: measured }
    }

    /// Why the axes with a step that is worse than logarithmic have one, a line each.
    fn reasons(&self) -> Vec<String> {
        let is_steep = |each: &&Measured| {
            each.growth_of_a_tenfold
                .is_some_and(|growth| growth > LOGARITHMIC_MAX)
        };
        let mut steep: Vec<Axis> = self.points.iter().filter(is_steep).map(axis_of).collect();
        steep.dedup();
        let reason = |axis: Axis| axis.reason().unwrap_or("not accounted for");
        let lines = steep.into_iter();
        lines
            .map(|axis| format!("{}: {}", axis.name(), reason(axis)))
            .collect()
    }

    fn curves(&self) -> Vec<Curve> {
        let curve = |axis: Axis| {
            let points = self.points.iter().filter(|each| each.point.axis == axis);
            let points = points.filter(|each| each.cpu_ns_per_message > 0.0);
            let points =
                points.map(|each| (crate::report::count(each.point.at), each.cpu_ns_per_message));
            Curve {
                name: axis.name(),
                points: points.collect(),
            }
        };
        let curves = Axis::ALL.into_iter().map(curve);
        curves.filter(|curve| !curve.points.is_empty()).collect()
    }
}

fn axis_of(measured: &Measured) -> Axis {
    measured.point.axis
}

/// By what the cost is multiplied when the size is multiplied by ten, between two points.
fn growth_of_a_tenfold(first: (u64, f64), last: (u64, f64)) -> f64 {
    let size = crate::report::count(last.0) / crate::report::count(first.0);
    let cost = last.1 / first.1;
    10_f64.powf(cost.log10() / size.log10())
}

impl Table for SweepReport {
    fn table(&self) -> String {
        let mut grid = Grid::new(&["along", "at", "CPU ns/message", "messages/s", "x10", ""]);
        for each in &self.points {
            let of_axis = self
                .points
                .iter()
                .filter(|other| other.point.axis == each.point.axis);
            let most = of_axis
                .map(|other| other.cpu_ns_per_message)
                .fold(0.0, f64::max);
            let growth = each.growth_of_a_tenfold;
            grid.row(vec![
                each.point.axis.name().to_owned(),
                each.point.at.to_string(),
                format!("{:.0}", each.cpu_ns_per_message),
                format!("{:.0}", each.per_sec),
                growth.map_or_else(|| "-".to_owned(), |growth| format!("{growth:.2}")),
                plot::bar(each.cpu_ns_per_message, most, BAR_CELLS),
            ]);
        }
        let mut text = grid.text();
        let reasons = self.reasons();
        if !reasons.is_empty() {
            text.push_str("\nworse than logarithmic somewhere:\n");
            for reason in reasons {
                text.push_str(&reason);
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(first: (u64, f64), last: (u64, f64), expected: f64) {
        let growth = growth_of_a_tenfold(first, last);
        assert!(
            (growth - expected).abs() < 1e-9,
            "{growth} is not {expected}"
        );
    }

    #[test]
    fn growth_is_per_tenfold_step() {
        check((10, 100.0), (1000, 100.0), 1.0);
        check((10, 100.0), (1000, 400.0), 2.0);
        check((1, 5.0), (1000, 5000.0), 10.0);
    }

    #[test]
    fn a_point_that_was_not_counted_is_left_out() {
        let uncounted = vec![Figures::default()];
        let points = [1, 10].map(|at| Point {
            axis: Axis::Queues,
            at,
        });
        let report = SweepReport::new(&points, vec![uncounted.clone(), uncounted]);
        assert!(report.curves().is_empty());
        assert!(
            report
                .points
                .iter()
                .all(|each| each.growth_of_a_tenfold.is_none())
        );
    }

    #[test]
    fn growth_is_that_of_the_step_and_steep_ones_have_a_reason() {
        let cost = |ns: f64| {
            vec![Figures {
                per_cpu_sec: 1e9 / ns,
                ..Figures::default()
            }]
        };
        let points = [
            (Axis::Queues, 1),
            (Axis::Queues, 100),
            (Axis::Queues, 1000),
            (Axis::Body, 10),
            (Axis::Body, 100),
        ];
        let points = points.map(|(axis, at)| Point { axis, at });
        let costs = [100.0, 400.0, 400.0, 30.0, 90.0];
        let rounds = costs.map(cost).to_vec();
        let report = SweepReport::new(&points, rounds);
        let growths: Vec<Option<u32>> = report
            .points
            .iter()
            .map(|each| each.growth_of_a_tenfold)
            .map(|growth| growth.map(|growth| format!("{growth:.0}").parse().expect("a number")))
            .collect();
        assert_eq!(growths, [None, Some(2), Some(1), None, Some(3)]);
        assert_eq!(report.curves().len(), 2);
        let [reason] = report.reasons().try_into().expect("one axis is steep");
        assert!(reason.starts_with("body bytes: each byte"), "{reason}");
    }
}
