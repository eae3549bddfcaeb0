//! All goals of the broker's speed, measured in interleaved rounds and judged.
//!
//! ```text
//!  round 1: probe, probe, probe ...   round 2: the same backwards   ...
//!           |                                                            figures of a round: name -> number
//!           +-> goals: a formula over one round's figures -> median over the rounds -> reached or not
//! ```
//! A formula that divides or subtracts uses figures of one round only, which were measured within seconds of each other.

mod figures;
mod probes;

use crate::broker::{Broker, OwnArgs};
use crate::error::BenchError;
use crate::raw::RawDisk;
use crate::restart;
use crate::table::{Grid, Table, median};
use crate::workload::interleave;
use figures::{Bound, Figures, GOALS, Goal};
use probes::Probe;
use serde::Serialize;
use std::collections::BTreeMap;

/// Which goals, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GoalsArgs {
    /// How often all of it is repeated; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only what is measured under a name that contains this, such as `transient`, `durable`, `fan-out`, `backlog`, `RPC` or `idle`.
    #[arg(long, default_value = "")]
    case: String,
    /// Messages of 1 KiB of the backlog that is published and drained.
    #[arg(long, default_value = "300k", value_parser = restart::count)]
    backlog: u64,
    /// Connections that are opened to see what an idle one takes; needs as many open files (`ulimit -n`).
    #[arg(long, default_value = "500", value_parser = restart::count)]
    idle_connections: u64,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct GoalsReport {
    raw: RawDisk,
    rounds: Vec<Figures>,
    goals: Vec<Judged>,
}

#[derive(Debug, Serialize)]
struct Judged {
    about: &'static str,
    figure: f64,
    /// The smallest and the largest figure of the rounds.
    range: (f64, f64),
    goal: f64,
    is_at_least: bool,
    is_reached: bool,
    #[serde(skip)]
    digits: usize,
}

pub(crate) fn run(args: &GoalsArgs) -> Result<GoalsReport, BenchError> {
    let probes = Probe::chosen(&args.case);
    if probes.is_empty() {
        let text = format!("nothing is measured whose name contains '{}'", args.case);
        return Err(BenchError::Protocol(text));
    }
    let (broker, raw) = Broker::start(&args.own)?;
    let mut current = (0, broker);
    let measured = interleave(&probes, args.rounds, |round, probe| {
        if current.0 != round {
            // What a round leaves behind in a broker's memory does not go into the next one.
            current = (round, Broker::start(&args.own)?.0);
        }
        probe.measure(args, &current.1)
    })?;
    Ok(GoalsReport::new(raw, by_round(measured, args.rounds)))
}

/// What the probes say, together for each round.
fn by_round(measured: Vec<Vec<Figures>>, rounds: u32) -> Vec<Figures> {
    let mut all: Vec<Figures> = (0..rounds).map(|_| BTreeMap::new()).collect();
    for probe in measured {
        for (round, figures) in all.iter_mut().zip(probe) {
            round.extend(figures);
        }
    }
    all
}

impl GoalsReport {
    fn new(raw: RawDisk, rounds: Vec<Figures>) -> Self {
        let goals = GOALS.iter().filter_map(|goal| Judged::of(goal, &rounds));
        Self {
            raw,
            goals: goals.collect(),
            rounds,
        }
    }
}

impl Judged {
    /// `None` when what the goal needs was not measured.
    fn of(goal: &Goal, rounds: &[Figures]) -> Option<Self> {
        let figures: Vec<f64> = rounds.iter().filter_map(goal.figure).collect();
        if figures.is_empty() {
            return None;
        }
        let figure = median(figures.iter().copied());
        let range = figures
            .iter()
            .fold((f64::MAX, f64::MIN), |(min, max), figure| {
                (min.min(*figure), max.max(*figure))
            });
        let (goal_figure, is_at_least) = match goal.bound {
            Bound::AtLeast(least) => (least, true),
            Bound::AtMost(most) => (most, false),
        };
        Some(Self {
            about: goal.about,
            figure,
            range,
            goal: goal_figure,
            is_at_least,
            is_reached: match goal.bound {
                Bound::AtLeast(least) => figure >= least,
                Bound::AtMost(most) => figure <= most,
            },
            digits: goal.digits,
        })
    }
}

impl Table for GoalsReport {
    fn table(&self) -> String {
        let headings = [
            "goal", "", "wanted", "figure", "least", "most", "ratio", "reached",
        ];
        let mut grid = Grid::new(&headings);
        for goal in &self.goals {
            let number = |figure: f64| format!("{figure:.*}", goal.digits);
            grid.row(vec![
                goal.about.to_owned(),
                if goal.is_at_least { ">=" } else { "<=" }.to_owned(),
                number(goal.goal),
                number(goal.figure),
                number(goal.range.0),
                number(goal.range.1),
                format!("{:.2}", goal.figure / goal.goal),
                if goal.is_reached { "yes" } else { "no" }.to_owned(),
            ]);
        }
        let reached = self.goals.iter().filter(|goal| goal.is_reached).count();
        format!(
            "{}{reached} of {} goals reached; medians of {} rounds\n{}",
            grid.text(),
            self.goals.len(),
            self.rounds.len(),
            self.raw.line()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(figures: &[(&str, f64)]) -> Figures {
        let named = figures
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        named.collect()
    }

    #[track_caller]
    fn check(bound: Bound, rounds: &[Figures], expected: Option<(f64, bool)>) {
        let goal = Goal {
            about: "",
            figure: |figures| Some(figures.get("a")? / figures.get("b")?),
            bound,
            digits: 0,
        };
        let judged = Judged::of(&goal, rounds);
        assert_eq!(
            judged.map(|judged| (judged.figure, judged.is_reached)),
            expected
        );
    }

    #[test]
    fn a_goal_is_judged_by_the_median_of_its_rounds() {
        let rounds = [
            round(&[("a", 4.0), ("b", 2.0)]),
            round(&[("a", 90.0), ("b", 10.0)]),
            round(&[("a", 3.0), ("b", 1.0)]),
        ];
        check(Bound::AtLeast(3.0), &rounds, Some((3.0, true)));
        check(Bound::AtLeast(3.1), &rounds, Some((3.0, false)));
        check(Bound::AtMost(3.0), &rounds, Some((3.0, true)));
        check(Bound::AtMost(2.9), &rounds, Some((3.0, false)));
        check(Bound::AtMost(2.9), &[round(&[("a", 1.0)])], None);
    }

    #[test]
    fn the_probes_of_a_round_are_put_together() {
        let measured = vec![
            vec![round(&[("a", 1.0)]), round(&[("a", 2.0)])],
            vec![round(&[("b", 3.0)]), round(&[("b", 4.0)])],
        ];
        let rounds = by_round(measured, 2);
        assert_eq!(rounds[1], round(&[("a", 2.0), ("b", 4.0)]));
    }

    #[test]
    fn every_probe_can_be_chosen_by_its_name() {
        let all = Probe::chosen("");
        assert!(
            all.iter()
                .all(|probe| !Probe::chosen(probe.name()).is_empty())
        );
        assert!(Probe::chosen("no such name").is_empty());
    }

    #[test]
    fn every_goal_has_a_figure_when_everything_is_measured() {
        let everything: Figures = Probe::chosen("")
            .iter()
            .flat_map(Probe::figure_names)
            .map(|name| (name, 1.0))
            .collect();
        for goal in GOALS {
            let figure = (goal.figure)(&everything);
            assert!(figure.is_some(), "{} cannot be computed", goal.about);
        }
    }
}
