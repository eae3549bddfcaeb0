//! `strata-bench`: a load generator that speaks plain AMQP 0-9-1 to any broker by URL.
//!
//! ```text
//!  args --> run --+-- publisher threads --basic.publish--> broker --basic.deliver--> consumer threads --+
//!                 |         ^                                |                              |           |
//!                 |         +------------ basic.ack ---------+                              v           v
//!                 +-- /proc of the broker (CPU, RSS)                                     ledger     histogram --> report
//! ```
//!
//! 1. A publisher is a connection, a channel and a thread; so is a consumer. Nothing is shared on the way of a message.
//! 2. It must not be the bottleneck: messages are copied from a template, many to a write; deliveries are parsed in place, many to a
//!    read; the clock is read once a batch. The report shows the generator's own CPU seconds beside the broker's.
//! 3. Every body carries run, publisher, sequence number and the time it was sent. A ledger of bits knows at the end which messages
//!    were lost, doubled or out of order.
//! 4. Latencies go into a histogram of fixed size with an error below 2 %.
//! 5. What depends on the disk is shown beside the disk's own figures, measured in the same run (`raw`); what depends on the
//!    sockets, beside a stand-in that only moves the same bytes (`stand_in`).
//!
//! Exit code 0: all went well. 1: messages were lost, doubled or out of order, or the broker refused. 2: bad flags.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool writes its report to standard output and complaints to standard error"
)]

mod args;
mod broker;
mod churn;
mod clock;
mod connection;
mod consumer;
mod error;
mod flatness;
mod goals;
mod histogram;
mod hostile;
mod input;
mod ledger;
mod limit;
mod message;
mod process;
mod publisher;
mod raw;
mod recycle;
mod report;
mod restart;
mod rpc;
mod run;
mod stand_in;
mod table;
mod url;
mod workload;

use args::{Args, Cli, Command};
use clap::Parser;
use error::BenchError;
use serde::Serialize;
use std::process::ExitCode;
use table::Table;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => load(&cli.load),
        Some(Command::Restart(args)) => show(restart::run(&args), args.own.json),
        Some(Command::Queues(args)) => show(flatness::run(&args), args.own.json),
        Some(Command::Recycle(args)) => show(recycle::run(&args), args.json),
        Some(Command::Hostile(args)) => show(hostile::run(&args), args.own.json),
        Some(Command::Churn(args)) => show(churn::run(&args), args.own.json),
        Some(Command::Limit(args)) => show(limit::run(&args), args.own.json),
        Some(Command::Goals(args)) => show(goals::run(&args), args.own.json),
        Some(Command::StandIn(args)) => match stand_in::serve(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
    }
}

fn load(args: &Args) -> ExitCode {
    if let Err(complaint) = args.check() {
        eprintln!("strata-bench: {complaint}");
        return ExitCode::from(2);
    }
    match run::run(args) {
        Ok(report) => {
            if args.json {
                println!("{}", report.json());
            } else {
                print!("{}", report.table());
            }
            for failure in report.failures() {
                eprintln!("strata-bench: {failure}");
            }
            ExitCode::from(u8::from(!report.failures().is_empty()))
        }
        Err(error) => fail(&error),
    }
}

/// Prints what a command has measured.
fn show<T: Serialize + Table>(report: Result<T, BenchError>, is_json: bool) -> ExitCode {
    match report {
        Ok(report) if is_json => {
            let json = serde_json::to_string(&report);
            println!("{}", json.expect("numbers and texts are JSON"));
            ExitCode::SUCCESS
        }
        Ok(report) => {
            print!("{}", report.table());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &BenchError) -> ExitCode {
    eprintln!("strata-bench: {error}");
    ExitCode::FAILURE
}
