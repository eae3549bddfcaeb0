//! From a configuration to a broker that is ready to listen.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use super::alarms::Alarms;
use super::checkpointer;
use super::clients::Clients;
use super::hub::{Hub, Machine};
use super::journal::StorageJournal;
use super::length_limits;
use super::listeners::Listeners;
use super::memory;
use super::signals::Signals;
use super::tls::TlsError;
use super::worker::WorkerQueue;
use crate::allocator;
use crate::broker::effects::Effects;
use crate::broker::queue::IndexLimits;
use crate::broker::stamp::{Stamp, Stamps};
use crate::broker::{Broker, BrokerOptions, RestoreError};
use crate::config::args::{OnCorruptionArg, StampArg};
use crate::config::{Config, FsyncMode};
use crate::disk::{Clock, Disk, RealClock, RealDisk, machine};
use crate::session::options::CLUSTER_NAME;
use crate::storage::salvage::Salvage;
use crate::storage::{FsyncPolicy, OnCorruption, Options, Storage, StorageError};

/// Bytes that may be pushed and not durable before publishers are not read.
const UNDURABLE_MAX_BYTES: u64 = 32 << 20;
/// The same as a part of the memory limit: one in so many.
const UNDURABLE_SHARE: u64 = 8;
/// Entries of queues that are in memory may take at most this part of the memory limit: one in so many.
const ENTRIES_SHARE: u64 = 10;

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The log's topology cannot be read.
    #[error("data directory {directory}: {error}")]
    Restore {
        /// The directory.
        directory: String,
        /// What is wrong.
        error: RestoreError,
    },
    /// Certificates cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// Anything else of the machine.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    /// 3 for damaged or unreadable data, 2 for what the flags name, 1 for everything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Storage(StorageError::Damaged { .. }) | Self::Restore { .. } => 3,
            Self::Storage(StorageError::Io {
                operation, source, ..
            }) if is_unreadable(operation, source.kind()) => 3,
            Self::Tls(_) => 2,
            Self::Storage(_) | Self::Failed(_) => 1,
        }
    }
}

/// True when a file of the data directory is there and cannot be read: it has another owner, or is no file.
fn is_unreadable(operation: &str, kind: ErrorKind) -> bool {
    let is_read = ["open", "read", "lock"]
        .iter()
        .any(|verb| operation.starts_with(verb));
    let is_of_the_file = matches!(
        kind,
        ErrorKind::PermissionDenied | ErrorKind::IsADirectory | ErrorKind::NotADirectory
    );
    is_read && is_of_the_file
}

fn stamp(when: StampArg) -> Stamp {
    match when {
        StampArg::Off => Stamp::Off,
        StampArg::Fill => Stamp::Fill,
        StampArg::Overwrite => Stamp::Overwrite,
    }
}

fn storage_options(config: &Config, memory_limit_bytes: u64) -> Options {
    Options {
        fsync: match config.fsync {
            FsyncMode::Always => FsyncPolicy::Always,
            FsyncMode::Interval { every_ms } => FsyncPolicy::Interval { ms: every_ms },
            FsyncMode::Never => FsyncPolicy::Never,
        },
        commit_delay_us: config.commit_delay_us,
        commit_max_bytes: config.commit_max_bytes,
        ack_fsync_ms: config.ack_fsync_ms,
        segment_size_bytes: config.segment_size_bytes,
        undurable_max_bytes: UNDURABLE_MAX_BYTES.min(memory_limit_bytes / UNDURABLE_SHARE),
        on_corruption: match config.on_corruption {
            OnCorruptionArg::Refuse => OnCorruption::Refuse,
            OnCorruptionArg::Quarantine => OnCorruption::Quarantine,
        },
        index_min_messages: config.queue_index_min_messages,
        ..Options::default()
    }
}

/// Locks and recovers the data directory and builds the domain on it.
pub(super) fn start(config: &Config) -> Result<Arc<Hub>, StartError> {
    let directory = config.data_dir.display().to_string();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let disk = RealDisk::new(config.data_dir.clone()).map_err(|error| {
        StartError::Failed(format!("cannot use data directory {directory}: {error}"))
    })?;
    let real_disk = disk.clone();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let memory_limit_bytes = config.memory_limit.resolve(machine::usable_memory_bytes());
    let worker = Arc::new(WorkerQueue::default());
    let alarms = Arc::new(Alarms::new(config.disk_free_limit_bytes));
    let signals = Arc::new(Signals::new(Arc::clone(&worker), Arc::clone(&alarms)));
    let (storage, recovered) = Storage::open(
        Arc::clone(&disk),
        Arc::clone(&clock),
        storage_options(config, memory_limit_bytes),
        Arc::clone(&signals) as Arc<dyn crate::storage::CommitListener>,
    )?;
    real_disk.set_serving();
    if let Some(salvage) = &recovered.report.salvage {
        report_salvage(salvage);
    }
    let journal = Arc::new(StorageJournal(storage.clone()));
    let mut effects = Effects::default();
    let records: Vec<_> = recovered
        .meta_records
        .iter()
        .map(|record| (record.kind, record.version, record.body.as_ref()))
        .collect();
    let broker = Broker::restore(
        journal,
        BrokerOptions {
            loopback_users: config.access.loopback_users.clone(),
            resident_max_bytes: memory::contents_max_bytes(memory_limit_bytes),
            vhost_max_count: config.access.vhosts_max,
            queue_max_count: config.access.queues_max,
            exchange_max_count: config.access.exchanges_max,
            stamps: Stamps {
                time: stamp(config.stamp_time),
                node: stamp(config.stamp_node),
                node_name: CLUSTER_NAME.to_owned(),
            },
            is_salvaged: recovered.report.salvage.is_some(),
            index: IndexLimits {
                min_messages: config.queue_index_min_messages,
                entries_max_bytes: IndexLimits::default()
                    .entries_max_bytes
                    .min(memory_limit_bytes / ENTRIES_SHARE),
            },
        },
        recovered.meta_snapshot.as_deref(),
        &records,
        recovered.queues,
        clock.unix_ms(),
        &mut effects,
    )
    .map_err(|error| StartError::Restore { directory, error })?;
    let hub = Arc::new(Hub::new(
        storage,
        broker,
        recovered.report,
        signals,
        worker,
        Machine {
            clock,
            disk,
            memory_limit_bytes,
            alarms,
            clients: Clients::new(config.access.connections_max),
        },
    ));
    hub.check_disk();
    length_limits::apply(&hub, &mut effects);
    hub.carry_out(&mut effects);
    if hub.recovery.salvage.is_some() {
        // What was salvaged must not depend on damaged bytes any longer: the next start begins behind them.
        hub.storage.checkpoint(&hub.broker)?;
    }
    // What was replayed is in memory, entry by entry, until it is in index files.
    checkpointer::file_runs(&hub);
    // Nobody uses what recovery took any more, and a broker that rests would keep it.
    allocator::give_back();
    Ok(hub)
}

/// Says place by place what `--on-corruption quarantine` let pass.
fn report_salvage(salvage: &Salvage) {
    for place in &salvage.places {
        tracing::error!(
            file = %place.path.display(),
            offset = place.offset,
            bytes = place.len_bytes,
            detail = place.detail,
            "damaged data"
        );
    }
    let kept = salvage.kept_in.join(", ");
    tracing::error!(kept, "started from a damaged data directory: {salvage}");
}

/// The lines a person or a script waits for.
#[expect(
    clippy::print_stdout,
    reason = "the start-up lines are the program's output"
)]
pub(super) fn print_banner(config: &Config, hub: &Hub, listeners: &Listeners) -> io::Result<()> {
    let durability = match config.fsync {
        FsyncMode::Always => "always (a confirm means: on stable storage)".to_owned(),
        FsyncMode::Interval { every_ms } => {
            format!("interval {every_ms} ms (a confirm means: on stable storage)")
        }
        FsyncMode::Never => {
            "never (a confirm survives a killed broker, NOT a power cut)".to_owned()
        }
    };
    println!("StrataMQ {}", env!("CARGO_PKG_VERSION"));
    println!("data directory  {}", absolute(&config.data_dir));
    println!("fsync           {durability}");
    for (address, what) in listeners.addresses()? {
        println!("listening on    {address}{what}");
    }
    println!("recovered       {}", hub.recovery);
    println!("Server startup complete");
    Ok(())
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .display()
        .to_string()
}
