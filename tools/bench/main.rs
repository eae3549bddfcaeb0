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
//!
//! Exit code 0: all went well. 1: messages were lost, doubled or out of order, or the broker refused. 2: bad flags.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool writes its report to standard output and complaints to standard error"
)]

mod args;
mod clock;
mod connection;
mod consumer;
mod error;
mod histogram;
mod input;
mod ledger;
mod message;
mod process;
mod publisher;
mod report;
mod run;
mod url;

use args::Args;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(complaint) = args.check() {
        eprintln!("strata-bench: {complaint}");
        return ExitCode::from(2);
    }
    match run::run(&args) {
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
        Err(error) => {
            eprintln!("strata-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
