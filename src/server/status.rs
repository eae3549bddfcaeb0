//! What `stratamq status` shows.

use std::fmt;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::alarms::STALLED;
use super::hub::Hub;
use crate::broker::admin::{AdminCommand, AdminError, AdminReplyBody};
use crate::broker::effects::Effects;
use crate::storage::index::BLOCK_LEN;

/// The state of a running broker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// What the start found and did.
    pub recovery: String,
    /// Reasons why publishers are blocked; empty when all is well.
    pub alarms: Vec<String>,
    /// Client connections.
    pub connections: Connections,
    /// Messages since the start.
    pub messages: Messages,
    /// The log.
    pub log: LogStatus,
    /// Memory.
    pub memory: MemoryStatus,
    /// Positions of messages, in memory and in index files.
    pub index: IndexStatus,
    /// All queues.
    pub queues: Vec<QueueStatus>,
}

/// Positions of messages.
#[derive(Debug, Serialize, Deserialize)]
pub struct IndexStatus {
    /// Bytes of entries of queues in memory, about.
    pub memory_bytes: u64,
    /// Runs of 256 messages whose entries are in index files only.
    pub filed_runs: u64,
    /// Bytes of those in the files.
    pub filed_bytes: u64,
    /// Runs written to index files since the start.
    pub runs_written: u64,
    /// Runs whose place in an index file was damaged, and that were found in the log instead, since the start.
    pub runs_rebuilt: u64,
}

/// Client connections.
#[derive(Debug, Serialize, Deserialize)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Accepted since the start.
    pub opened: u64,
    /// Closed because of a fault in their own code.
    pub panics: u64,
}

/// Messages since the start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Messages {
    /// From clients.
    pub published: u64,
    /// To consumers.
    pub delivered: u64,
    /// Not readable on disk and kept aside.
    pub quarantined: u64,
}

/// Memory, in bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What the process may take.
    pub limit_bytes: u64,
    /// What it takes.
    pub rss_bytes: u64,
    /// What messages in the queues may take of it.
    pub contents_max_bytes: u64,
    /// What they take.
    pub contents_bytes: u64,
    /// Messages that are in spill files, being in no log.
    pub spilled_bytes: u64,
    /// Those files.
    pub spill_file_bytes: u64,
}

/// The log.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogStatus {
    /// Calls of fdatasync on the log since the start.
    pub fdatasync_count: u64,
    /// Their median, microseconds.
    pub fdatasync_p50_us: u64,
    /// Their 99th percentile, microseconds.
    pub fdatasync_p99_us: u64,
    /// The slowest, microseconds.
    pub fdatasync_max_us: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Messages logged since the start.
    pub messages: u64,
    /// Bytes written since the start.
    pub bytes: u64,
    /// Messages in an average commit.
    pub messages_per_commit: f64,
    /// Bytes in an average commit.
    pub bytes_per_commit: f64,
    /// Bytes pushed and not on stable storage.
    pub undurable_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Checkpoints written since the start.
    pub checkpoints: u64,
    /// Bytes of segment files.
    pub segment_bytes: u64,
    /// Bytes in them that belong to unsettled messages, as the newest checkpoint since the start counts them; a message
    /// in many queues counts as often, unless compaction had to know better.
    pub live_bytes: u64,
    /// The rest of them: settled messages, acknowledgements, space that is not used yet.
    pub dead_bytes: u64,
    /// Freed segment files kept to be used again.
    pub spare_segments: u64,
    /// Segments of messages that were moved out of nearly empty ones.
    pub cold_segments: u64,
    /// Bytes moved so since the start.
    pub compacted_bytes: u64,
    /// Bytes put aside for a full disk.
    pub reserve_bytes: u64,
    /// Bytes read again in the background since the start.
    pub scrubbed_bytes: u64,
    /// Damaged places that were found by that.
    pub scrub_found: u64,
}

/// A queue.
#[derive(Debug, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Vhost.
    pub vhost: String,
    /// Name.
    pub name: String,
    /// Id in the log, as the dump tool shows it.
    pub id: u64,
    /// Kept over restarts.
    pub durable: bool,
    /// Ready messages.
    pub ready: u64,
    /// Delivered, not settled.
    pub unacked: u64,
    /// Messages that cannot be read and are kept aside.
    pub quarantined: u64,
    /// Consumers.
    pub consumers: u64,
}

/// Collects the state of a running broker.
pub(super) fn collect(hub: &Hub) -> Result<Status, AdminError> {
    let mut effects = Effects::default();
    let now_ms = hub.now_ms();
    let reply = hub
        .broker
        .admin(AdminCommand::ListQueues, now_ms, &mut effects)?;
    let AdminReplyBody::Queues(rows) = reply.body else {
        return Ok(status(hub, now_ms, Vec::new()));
    };
    let queues = rows
        .into_iter()
        .map(|row| QueueStatus {
            vhost: row.vhost,
            name: row.name,
            id: row.id,
            durable: row.is_durable,
            ready: row.ready_count,
            unacked: row.unacked_count,
            quarantined: row.quarantined_count,
            consumers: row.consumer_count,
        })
        .collect();
    Ok(status(hub, now_ms, queues))
}

fn status(hub: &Hub, now_ms: u64, queues: Vec<QueueStatus>) -> Status {
    let counters = &hub.counters;
    let stats = hub.storage.stats();
    let opened = counters.connections_opened.load(Ordering::Relaxed);
    let closed = counters.connections_closed.load(Ordering::Relaxed);
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: now_ms.saturating_sub(hub.started_at_ms),
        recovery: hub.recovery.to_string(),
        alarms: hub
            .alarms
            .reasons()
            .into_iter()
            .chain(hub.storage.is_stalled().then_some(STALLED))
            .map(str::to_owned)
            .collect(),
        connections: Connections {
            open: opened.saturating_sub(closed),
            opened,
            panics: counters.connection_panics.load(Ordering::Relaxed),
        },
        messages: Messages {
            published: counters.messages_published.load(Ordering::Relaxed),
            delivered: counters.messages_delivered.load(Ordering::Relaxed),
            quarantined: hub.broker.quarantined_count(),
        },
        log: log_status(hub, &stats),
        memory: memory_status(hub),
        index: index_status(hub, &stats),
        queues,
    }
}

fn memory_status(hub: &Hub) -> MemoryStatus {
    let figures = hub.memory.figures();
    MemoryStatus {
        limit_bytes: figures.limit_bytes,
        rss_bytes: figures.rss_bytes,
        contents_max_bytes: hub.broker.resident_max_bytes(),
        contents_bytes: hub.broker.resident_bytes(),
        spilled_bytes: figures.spilled_bytes,
        spill_file_bytes: figures.spill_file_bytes,
    }
}

fn index_status(hub: &Hub, stats: &crate::storage::Stats) -> IndexStatus {
    let queues = hub.broker.queues();
    let filed_runs = queues.filed_run_count();
    IndexStatus {
        memory_bytes: queues.entries_bytes(),
        filed_runs,
        filed_bytes: filed_runs * BLOCK_LEN as u64,
        runs_written: stats.filed_run_count,
        runs_rebuilt: stats.rebuilt_run_count,
    }
}

fn log_status(hub: &Hub, stats: &crate::storage::Stats) -> LogStatus {
    LogStatus {
        fdatasync_count: stats.sync_count,
        fdatasync_p50_us: stats.sync_ns.percentile(500) / 1000,
        fdatasync_p99_us: stats.sync_ns.percentile(990) / 1000,
        fdatasync_max_us: stats.sync_ns.max() / 1000,
        commits: stats.commit_count,
        messages: stats.message_count,
        bytes: stats.written_bytes,
        messages_per_commit: ratio(stats.message_count, stats.commit_count),
        bytes_per_commit: ratio(stats.written_bytes, stats.commit_count),
        undurable_bytes: stats.undurable_bytes,
        segments: stats.segment_count,
        checkpoints: stats.checkpoint_count,
        segment_bytes: stats.segment_bytes,
        live_bytes: stats.live_bytes,
        dead_bytes: stats.segment_bytes.saturating_sub(stats.live_bytes),
        spare_segments: stats.spare_count,
        cold_segments: stats.cold_segment_count,
        compacted_bytes: stats.compacted_bytes,
        reserve_bytes: stats.reserve_bytes,
        scrubbed_bytes: hub.counters.scrubbed_bytes.load(Ordering::Relaxed),
        scrub_found: hub.counters.scrub_found.load(Ordering::Relaxed),
    }
}

#[expect(clippy::cast_precision_loss, reason = "an average for people")]
fn ratio(sum: u64, count: u64) -> f64 {
    if count == 0 {
        0.0
    } else {
        sum as f64 / count as f64
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            log,
            memory,
            index,
            messages,
            connections,
            ..
        } = self;
        writeln!(
            f,
            "StrataMQ {}, up {} s",
            self.version,
            self.uptime_ms / 1000
        )?;
        writeln!(f, "recovery      {}", self.recovery)?;
        let alarms = if self.alarms.is_empty() {
            "none".to_owned()
        } else {
            self.alarms.join(", ")
        };
        writeln!(f, "alarms        {alarms}")?;
        writeln!(
            f,
            "connections   {} open, {} since start, {} closed by a fault of ours",
            connections.open, connections.opened, connections.panics
        )?;
        writeln!(
            f,
            "messages      {} published, {} delivered, {} quarantined",
            messages.published, messages.delivered, messages.quarantined
        )?;
        writeln!(
            f,
            "log           {} commits, {:.1} messages and {:.0} bytes each; {} bytes not durable yet; {} segments, {} checkpoints",
            log.commits,
            log.messages_per_commit,
            log.bytes_per_commit,
            log.undurable_bytes,
            log.segments,
            log.checkpoints
        )?;
        writeln!(
            f,
            "disk          {} bytes in segments, {} of them alive; {} spare and {} cold segments, {} bytes compacted, {} in reserve",
            log.segment_bytes,
            log.live_bytes,
            log.spare_segments,
            log.cold_segments,
            log.compacted_bytes,
            log.reserve_bytes
        )?;
        writeln!(
            f,
            "fdatasync     {} calls, p50 {} us, p99 {} us, max {} us",
            log.fdatasync_count, log.fdatasync_p50_us, log.fdatasync_p99_us, log.fdatasync_max_us
        )?;
        writeln!(
            f,
            "memory        {} of {} bytes; {} of {} in messages, {} spilled to {} on disk",
            memory.rss_bytes,
            memory.limit_bytes,
            memory.contents_bytes,
            memory.contents_max_bytes,
            memory.spilled_bytes,
            memory.spill_file_bytes
        )?;
        writeln!(
            f,
            "index         {} bytes of entries in memory; {} runs, {} bytes, in index files only; {} runs written, {} rebuilt",
            index.memory_bytes,
            index.filed_runs,
            index.filed_bytes,
            index.runs_written,
            index.runs_rebuilt
        )?;
        writeln!(
            f,
            "scrubber      {} bytes read again, {} damaged places found",
            log.scrubbed_bytes, log.scrub_found
        )?;
        writeln!(f, "queues        {}", self.queues.len())?;
        if !self.queues.is_empty() {
            writeln!(
                f,
                "  {:<16} {:<40} {:>7} {:>10} {:>10} {:>11} {:>9}",
                "vhost", "name", "durable", "ready", "unacked", "quarantined", "consumers"
            )?;
        }
        for queue in &self.queues {
            let durable = if queue.durable { "yes" } else { "no" };
            writeln!(
                f,
                "  {:<16} {:<40} {:>7} {:>10} {:>10} {:>11} {:>9}",
                queue.vhost,
                queue.name,
                durable,
                queue.ready,
                queue.unacked,
                queue.quarantined,
                queue.consumers
            )?;
        }
        Ok(())
    }
}
