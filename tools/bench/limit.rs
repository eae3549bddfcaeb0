//! Every load beside its limits, measured in the same rounds.
//!
//! ```text
//!  round:  load 1 on the broker, load 1 on the stand-in, appends as large as its commits;  load 2 on the broker, ...
//! ```
//! The stand-in (`stand_in`) only moves the bytes; the commit loop (`raw`) only writes and syncs them. A ratio divides what was
//! measured side by side, and the median of the rounds is shown: 1.0 is the limit itself.

use crate::broker::{Broker, OwnArgs};
use crate::error::BenchError;
use crate::raw::RawDisk;
use crate::table::{Grid, Table, median};
use crate::workload::{Measured, WORKLOADS, Workload, interleave};
use serde::Serialize;

/// Which loads, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LimitArgs {
    /// How often all of it is repeated; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only loads whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct LimitReport {
    raw: RawDisk,
    loads: Vec<Load>,
}

#[derive(Debug, Serialize)]
struct Load {
    name: &'static str,
    copies: u32,
    rounds: Vec<Measured>,
}

pub(crate) fn run(args: &LimitArgs) -> Result<LimitReport, BenchError> {
    let chosen = WORKLOADS
        .iter()
        .filter(|load| load.name.contains(&args.case));
    let chosen: Vec<Workload> = chosen.copied().collect();
    if chosen.is_empty() {
        let text = format!("no load's name contains '{}'", args.case);
        return Err(BenchError::Protocol(text));
    }
    let (broker, raw) = Broker::start(&args.own)?;
    let measured = interleave(&chosen, args.rounds, |_, load| {
        Measured::of(load, &broker, args.seconds)
    })?;
    let loads = chosen.iter().zip(measured).map(|(load, rounds)| Load {
        name: load.name,
        copies: load.copies(),
        rounds,
    });
    Ok(LimitReport {
        raw,
        loads: loads.collect(),
    })
}

impl Load {
    fn median(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    /// The limit by the figure: how many times better the limit is.
    fn ratio(&self, of: impl Fn(&Measured) -> (f64, f64)) -> f64 {
        self.median(|round| {
            let (limit, figure) = of(round);
            limit / figure.max(f64::MIN_POSITIVE)
        })
    }
}

impl Table for LimitReport {
    fn table(&self) -> String {
        let mut grid = Grid::new(&[
            "load",
            "msg/s",
            "sockets'",
            "ratio",
            "disk's",
            "ratio",
            "msg/commit",
            "msg/CPU s",
            "stand-in's",
            "ratio",
            "CPUs",
            "stand-in",
            "generator",
        ]);
        for load in &self.loads {
            let disk = |round: &Measured| round.disk_per_sec(load.copies).unwrap_or(0.0);
            let has_disk = load.rounds.iter().any(|round| round.limits.disk.is_some());
            let only_with_disk = |text: String| if has_disk { text } else { "-".to_owned() };
            let ratio_to_disk = load.ratio(|round| (disk(round), round.broker.per_sec));
            let per_commit = load.median(|round| round.broker.messages_per_commit);
            grid.row(vec![
                load.name.to_owned(),
                format!("{:.0}", load.median(|round| round.broker.per_sec)),
                format!("{:.0}", load.median(|round| round.limits.socket.per_sec)),
                format!(
                    "{:.2}",
                    load.ratio(|round| (round.limits.socket.per_sec, round.broker.per_sec))
                ),
                only_with_disk(format!("{:.0}", load.median(disk))),
                only_with_disk(format!("{ratio_to_disk:.2}")),
                only_with_disk(format!("{per_commit:.1}")),
                format!("{:.0}", load.median(|round| round.broker.per_cpu_sec)),
                format!(
                    "{:.0}",
                    load.median(|round| round.limits.socket.per_cpu_sec)
                ),
                format!(
                    "{:.2}",
                    load.ratio(|round| (round.limits.socket.per_cpu_sec, round.broker.per_cpu_sec))
                ),
                format!("{:.2}", load.median(|round| round.broker.cpu_share)),
                format!("{:.2}", load.median(|round| round.limits.socket.cpu_share)),
                format!(
                    "{:.2}",
                    load.median(|round| round.broker.generator_cpu_share)
                ),
            ]);
        }
        format!("{}{}", grid.text(), self.raw.line())
    }
}
