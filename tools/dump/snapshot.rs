//! What recovery would find: queues and topology at the end of the log.

use std::collections::BTreeMap;

use stratamq::broker::RestoreError;
use stratamq::broker::meta::{Change, MetaState};
use stratamq::storage::checkpoint::Checkpoint;
use stratamq::storage::index::look::{self, Messages};
use stratamq::storage::replay::HighCounts;
use stratamq::storage::salvage::{Salvage, salvage};
use stratamq::storage::superblock::Superblock;
use stratamq::storage::survey::{Discarded, Survey, survey};
use stratamq::storage::types::{Lsn, QueueId, SegmentId};
use stratamq::storage::{MetaRecord, QueueImage};

use crate::error::DumpError;
use crate::store::Store;

/// The state at the end of the log.
pub(crate) struct Snapshot {
    /// The superblock that counted.
    pub(crate) superblock: Superblock,
    /// The newest checkpoint, without its queues.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Segments of the log from the checkpoint's begin on, in order.
    pub(crate) chain: Vec<SegmentId>,
    /// Where the log ends.
    pub(crate) end: Lsn,
    /// Everything below is known to be on stable storage.
    pub(crate) synced: Lsn,
    /// What lies behind the end.
    pub(crate) discarded: Vec<Discarded>,
    /// Records behind the checkpoint.
    pub(crate) replayed_count: u64,
    /// All queues, in ascending id.
    pub(crate) queues: Vec<QueueImage>,
    /// Topology and users.
    pub(crate) topology: MetaState,
    /// What runs cannot say.
    high_counts: HighCounts,
}

/// What is alive in one segment, counted from the entries of all queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Live {
    /// Unsettled refs into it.
    pub(crate) refs: u64,
    /// Bytes of the records these refs name, each record counted once.
    pub(crate) record_bytes: u64,
    /// Behind the last of these records.
    pub(crate) end: Lsn,
}

impl Snapshot {
    /// Reads the directory that `superblock` describes, once.
    pub(crate) fn read(store: &Store, superblock: Superblock) -> Result<Self, DumpError> {
        Self::of(store, survey(&store.view, superblock)?)
    }

    /// What can be verified of a damaged directory, and what is missing.
    pub(crate) fn salvage(store: &Store) -> Result<(Self, Option<Salvage>), DumpError> {
        let superblock = store.superblock().ok().map(|(_, superblock)| superblock);
        let mut survey = salvage(&store.view, superblock)?;
        let missing = survey.salvage.take();
        Ok((Self::of(store, survey)?, missing))
    }

    fn of(store: &Store, survey: Survey) -> Result<Self, DumpError> {
        let superblock = survey.superblock;
        let replayed_count = survey.replay.record_count();
        let high_counts = survey.replay.high_counts().clone();
        let (queues, records) = survey.replay.finish();
        let snapshot = survey
            .checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.meta.as_slice());
        let topology = read_topology(snapshot, &records).map_err(|error| DumpError::Topology {
            path: store.name(),
            error,
        })?;
        Ok(Self {
            superblock,
            checkpoint: survey.checkpoint,
            chain: survey.chain.iter().map(|header| header.segment).collect(),
            end: survey.end,
            synced: survey.synced,
            discarded: survey.discarded,
            replayed_count,
            queues,
            topology,
            high_counts,
        })
    }

    /// Reads the directory, again if a broker overtakes us.
    pub(crate) fn load(store: &Store) -> Result<Self, DumpError> {
        store.look(|_, superblock| Self::read(store, superblock))
    }

    /// Gathers what needs the state, and what can still be shown when the state is lost: of a damaged directory
    /// `gather` gets no snapshot, and the damage comes back beside what it gathered.
    pub(crate) fn look<T>(
        store: &Store,
        mut gather: impl FnMut(Option<Self>, &Superblock) -> Result<T, DumpError>,
    ) -> Result<(T, Option<DumpError>), DumpError> {
        let whole = store.look(|_, superblock| {
            let snapshot = Self::read(store, superblock)?;
            gather(Some(snapshot), &superblock)
        });
        match whole {
            Ok(gathered) => Ok((gathered, None)),
            Err(damage) if damage.exit_code() == 3 => {
                let gathered = store.look(|_, superblock| gather(None, &superblock))?;
                Ok((gathered, Some(damage)))
            }
            Err(error) => Err(error),
        }
    }

    /// The unsettled messages of a queue.
    pub(crate) fn messages(
        &self,
        store: &Store,
        image: &QueueImage,
    ) -> Result<Messages, DumpError> {
        let id = self.superblock.store;
        Ok(look::messages(&store.view, id, image, &self.high_counts)?)
    }

    /// What is alive in each segment.
    pub(crate) fn live(&self, store: &Store) -> Result<BTreeMap<SegmentId, Live>, DumpError> {
        // One record may be named by many queues.
        let mut positions: Vec<(Lsn, u32)> = Vec::new();
        for image in &self.queues {
            let messages = self.messages(store, image)?;
            let places = messages.entries.iter().map(|entry| entry.position);
            positions.extend(places.map(|position| (position.lsn, position.len_bytes)));
        }
        positions.sort_unstable();
        let mut live: BTreeMap<SegmentId, Live> = BTreeMap::new();
        let mut previous = None;
        for (lsn, len_bytes) in positions {
            let of_segment = live.entry(lsn.segment()).or_default();
            of_segment.refs += 1;
            of_segment.end = of_segment.end.max(Lsn(lsn.0 + u64::from(len_bytes)));
            if previous != Some(lsn) {
                of_segment.record_bytes += u64::from(len_bytes);
            }
            previous = Some(lsn);
        }
        Ok(live)
    }

    /// The queue that `text` means: an id, `VHOST/NAME`, or a name that only one queue has.
    pub(crate) fn find_queue(&self, text: &str) -> Result<QueueId, DumpError> {
        if let Ok(id) = text.parse()
            && self.topology.queues.contains_key(&id)
        {
            return Ok(QueueId(id));
        }
        let queues = || self.topology.queues.values();
        if let Some(queue) = queues().find(|queue| full_name(&queue.vhost, &queue.name) == text) {
            return Ok(QueueId(queue.id));
        }
        let named: Vec<u64> = queues()
            .filter(|queue| queue.name == text)
            .map(|queue| queue.id)
            .collect();
        match named.as_slice() {
            [id] => Ok(QueueId(*id)),
            [] => Err(DumpError::Queue(format!("there is no queue {text:?}"))),
            _ => Err(DumpError::Queue(format!(
                "several vhosts have a queue {text:?}: name it VHOST/NAME or by id"
            ))),
        }
    }

    /// The image of a queue, if the log knows it.
    pub(crate) fn image(&self, id: QueueId) -> Option<&QueueImage> {
        let index = self
            .queues
            .binary_search_by_key(&id, |image| image.id)
            .ok()?;
        self.queues.get(index)
    }
}

/// How a queue is named where its vhost is not clear.
pub(crate) fn full_name(vhost: &str, name: &str) -> String {
    format!("{vhost}/{name}")
}

fn read_topology(
    snapshot: Option<&[u8]>,
    records: &[MetaRecord],
) -> Result<MetaState, RestoreError> {
    let mut state = snapshot.map_or_else(|| Ok(MetaState::new()), MetaState::decode)?;
    for record in records {
        state.apply(Change::decode(record.kind, record.version, &record.body)?);
    }
    Ok(state)
}
