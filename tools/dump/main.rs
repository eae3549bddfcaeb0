//! `strata-dump`: looks into a data directory, of a stopped broker or of one that runs.
//!
//! ```text
//!  args --> store (superblock, retry) --> view (a disk that cannot write) --> files
//!             |
//!             +--> log: segments, their order, what is void        --> segments, batches, records
//!             +--> snapshot: storage::survey + broker::meta        --> queues, index, topology, verify
//!                    +--> live: or storage::salvage                --> quarantine, export
//! ```
//! 1. Nothing is ever written: the only door to the files is [`view::View`], which refuses every act but reading.
//! 2. What it says about state is what recovery would find: the passes are those of `storage::survey`.
//! 3. Of a running broker it takes no lock and reads what is there; what is not proven durable is told apart, and a
//!    file that vanishes meanwhile is a reason to begin again with the newer superblock.
//!
//! Exit codes: 0 clean (a torn tail is clean), 3 damaged, 2 usage, 1 anything else.

mod args;
mod entries;
mod error;
mod export;
mod filter;
mod index;
mod live;
mod log;
mod mapped;
mod print;
mod quarantine;
mod queues;
mod records;
mod segments;
mod snapshot;
mod store;
mod tables;
mod topology;
mod verify;
mod view;

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use error::DumpError;
use print::Printer;
use store::Store;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let outcome = run(&args, &mut out).and_then(|()| out.flush().map_err(DumpError::Output));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(DumpError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // What was found before the error comes before it.
            let _ = out.flush();
            eprintln!("strata-dump: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args, out: &mut dyn Write) -> Result<(), DumpError> {
    let options = args.command.options();
    let store = Store::open(&options.data_dir)?;
    if let Command::Export { queue, .. } = &args.command {
        return export::run(&store, queue.as_deref(), out);
    }
    let mut printer = Printer::new(out, options.json);
    let printer = &mut printer;
    match &args.command {
        Command::Segments(_) => segments::run(&store, printer),
        Command::Batches { range, .. } => records::batches(&store, range, printer),
        Command::Records {
            range, selection, ..
        } => records::records(&store, range, selection, printer),
        Command::Queues(_) => queues::run(&store, printer),
        Command::Index { queue, .. } => index::run(&store, queue, printer),
        Command::Topology(_) => topology::run(&store, printer),
        Command::Superblock(_) => entries::superblock(&store, printer),
        Command::Checkpoint(_) => entries::checkpoint(&store, printer),
        Command::Verify(_) => verify::run(&store, printer),
        Command::Quarantine(_) => quarantine::run(&store, printer),
        Command::Export { .. } => Ok(()),
    }
}
