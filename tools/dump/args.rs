//! The command line. The doc comments are the `--help`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use stratamq::storage::types::{Lsn, SegmentId};

/// Looks into a StrataMQ data directory without changing it.
///
/// Works on a stopped directory and on that of a running broker: it takes no lock and writes nothing. Exit code
/// 0: clean (a torn tail is clean). 3: damaged. 2: usage. 1: anything else.
#[derive(Debug, Parser)]
#[command(name = "strata-dump", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What all commands take.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The data directory of a broker, stopped or running
    pub(crate) data_dir: PathBuf,

    /// One JSON object a line, for machines, in place of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// A part of the log.
#[derive(Debug, clap::Args)]
pub(crate) struct LogRange {
    /// Begin at this place: SEGMENT:OFFSET as printed, or one number
    #[arg(long, value_name = "LSN", value_parser = parse_lsn)]
    pub(crate) from: Option<Lsn>,

    /// End before this place
    #[arg(long, value_name = "LSN", value_parser = parse_lsn)]
    pub(crate) to: Option<Lsn>,

    /// Only this segment: 12 hexadecimal digits as in the file's name, or a number
    #[arg(long, value_name = "N", value_parser = parse_segment)]
    pub(crate) segment: Option<SegmentId>,
}

/// Which records.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Only records that touch this queue: its id, VHOST/NAME, or a name that only one queue has
    #[arg(long, value_name = "QUEUE")]
    pub(crate) queue: Option<String>,

    /// Only records of this type
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    pub(crate) kind: Option<RecordKind>,

    /// Show the bodies of messages
    #[arg(long)]
    pub(crate) bodies: bool,
}

/// Types of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordKind {
    Publish,
    Settle,
    Requeue,
    Reserve,
    Meta,
    Open,
    Mark,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the segments of the log: what is in them and why they are kept
    Segments(Options),
    /// List batches: what one commit wrote
    Batches {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        range: LogRange,
    },
    /// List records
    Records {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        range: LogRange,
        #[command(flatten)]
        selection: Selection,
    },
    /// List durable queues and their state
    Queues(Options),
    /// List the messages of a queue: where each lies, whether it was delivered and acked
    Index {
        /// Its id, VHOST/NAME, or a name that only one queue has
        queue: String,
        #[command(flatten)]
        options: Options,
    },
    /// Show vhosts, users, permissions, exchanges, queues and bindings
    Topology(Options),
    /// Show both copies of the superblock
    Superblock(Options),
    /// Show the newest checkpoint
    Checkpoint(Options),
    /// Check every checksum, the chain of batches, what was proven durable, and the index against the log
    Verify(Options),
    /// List live messages that cannot be read, and copies of bytes that a start left out
    Quarantine(Options),
    /// Write the readable live messages as JSON lines, also of a directory that no broker starts on
    Export {
        #[command(flatten)]
        options: Options,
        /// Only this queue: its id, VHOST/NAME, or a name that only one queue has
        #[arg(long, value_name = "QUEUE")]
        queue: Option<String>,
    },
}

impl Command {
    pub(crate) fn options(&self) -> &Options {
        match self {
            Self::Segments(options)
            | Self::Queues(options)
            | Self::Topology(options)
            | Self::Superblock(options)
            | Self::Checkpoint(options)
            | Self::Verify(options)
            | Self::Quarantine(options)
            | Self::Export { options, .. }
            | Self::Batches { options, .. }
            | Self::Records { options, .. }
            | Self::Index { options, .. } => options,
        }
    }
}

/// Digits of a segment's number as it is printed.
const SEGMENT_DIGITS: usize = 12;

fn parse_segment(text: &str) -> Result<SegmentId, String> {
    let number = if text.len() == SEGMENT_DIGITS {
        u64::from_str_radix(text, 16).ok()
    } else {
        parse_number(text)
    };
    let number = number.ok_or("not a segment: 12 hexadecimal digits, or a number")?;
    if number > u64::MAX >> Lsn::OFFSET_BITS {
        return Err("there is no such segment: the number is too large".into());
    }
    Ok(SegmentId(number))
}

fn parse_lsn(text: &str) -> Result<Lsn, String> {
    let Some((segment, offset)) = text.split_once(':') else {
        return parse_number(text)
            .map(Lsn)
            .ok_or_else(|| "not a place: SEGMENT:OFFSET, or one number".into());
    };
    let offset = parse_number(offset).and_then(|offset| u32::try_from(offset).ok());
    match offset.filter(|offset| *offset < 1 << Lsn::OFFSET_BITS) {
        Some(offset) => Ok(Lsn::new(parse_segment(segment)?, offset)),
        None => Err("the offset is not a number below 2^30".into()),
    }
}

/// A decimal number, or a hexadecimal one behind `0x`.
fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn places_are_read_as_they_are_printed() {
        let place = Lsn::new(SegmentId(0x1f), 4096);
        assert_eq!(parse_lsn(&place.to_string()), Ok(place));
        assert_eq!(parse_lsn(&place.0.to_string()), Ok(place));
        assert_eq!(parse_lsn("0x1f:0x1000"), Ok(place));
        assert_eq!(parse_segment("31"), Ok(SegmentId(31)));
        for wrong in ["", ":", "1:", "x:1", "1:1073741824", "-1"] {
            assert!(parse_lsn(wrong).is_err(), "{wrong}");
        }
    }
}
