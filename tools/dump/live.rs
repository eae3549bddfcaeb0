//! The live messages of a directory that may be damaged: which there are, and what each says.
//!
//! The state is what recovery would find. Where recovery would refuse, it is what `--on-corruption quarantine` would
//! start with, and that is said.

use bytes::Bytes;
use stratamq::broker::message::Message;
use stratamq::disk::{Disk, OpenMode};
use stratamq::storage::format::segment_path;
use stratamq::storage::salvage::Salvage;
use stratamq::storage::types::{ImageEntry, Position, QueueId};
use stratamq::storage::{QueueImage, check_record};

use crate::error::DumpError;
use crate::log::io_error;
use crate::snapshot::{Snapshot, full_name};
use crate::store::Store;

/// The state, and what is missing in it if it had to be salvaged.
pub(crate) struct Live {
    pub(crate) snapshot: Snapshot,
    pub(crate) salvage: Option<Salvage>,
}

/// A message that is not settled and cannot be read.
pub(crate) struct Unreadable {
    pub(crate) queue: QueueId,
    pub(crate) entry: ImageEntry,
    pub(crate) reason: String,
}

impl Live {
    /// Reads the state, whatever is left of it.
    pub(crate) fn load(store: &Store) -> Result<Self, DumpError> {
        match Snapshot::load(store) {
            Ok(snapshot) => Ok(Self {
                snapshot,
                salvage: None,
            }),
            Err(error) if error.exit_code() == 3 || error.is_missing_superblock() => {
                let (snapshot, salvage) = Snapshot::salvage(store)?;
                let salvage = salvage.ok_or(error)?;
                Ok(Self {
                    snapshot,
                    salvage: Some(salvage),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The name of a queue as `VHOST/NAME`, or what is known of it.
    pub(crate) fn names_of(&self, id: QueueId) -> (Option<&str>, Option<&str>) {
        let queue = self.snapshot.topology.queues.get(&id.0);
        (
            queue.map(|queue| queue.vhost.as_str()),
            queue.map(|queue| queue.name.as_str()),
        )
    }

    /// The same, for people.
    pub(crate) fn text_of(&self, id: QueueId) -> String {
        match self.names_of(id) {
            (Some(vhost), Some(name)) => full_name(vhost, name),
            _ => format!("queue {id}"),
        }
    }

    /// The queue that `text` means, also one whose declaration is lost.
    pub(crate) fn find_queue(&self, text: &str) -> Result<QueueId, DumpError> {
        let by_id = text.parse().ok().map(QueueId);
        match by_id.filter(|id| self.snapshot.image(*id).is_some()) {
            Some(id) => Ok(id),
            None => self.snapshot.find_queue(text),
        }
    }

    /// The unsettled messages of a queue in ascending seq. When places are neither in the index nor in the log, those
    /// of the other messages; with what is missing then.
    pub(crate) fn messages(
        &self,
        store: &Store,
        image: &QueueImage,
    ) -> Result<(Vec<ImageEntry>, Option<DumpError>), DumpError> {
        match self.snapshot.messages(store, image) {
            Ok(messages) => Ok((messages.entries, None)),
            Err(error) if error.exit_code() == 3 => {
                Ok((image.entries.iter().copied().collect(), Some(error)))
            }
            Err(error) => Err(error),
        }
    }
}

/// The message at the place of `entry`, or why it cannot be read.
pub(crate) fn read_message(
    store: &Store,
    queue: QueueId,
    entry: &ImageEntry,
) -> Result<Result<Message, String>, DumpError> {
    let mut record = Vec::new();
    if let Err(error) = read_record(store, entry.position, &mut record) {
        return if error.is_missing_file() {
            Ok(Err("its segment is missing".into()))
        } else {
            Err(error)
        };
    }
    let payload = match check_record(&record, queue, entry.seq, entry.position) {
        Ok(payload) => payload,
        Err(reason) => return Ok(Err(reason)),
    };
    let message = Message::decode_payload(Bytes::copy_from_slice(payload));
    Ok(message.map_err(|error| error.to_string()))
}

/// Reads the bytes at `position`, or those of them that the file has.
pub(crate) fn read_record(
    store: &Store,
    position: Position,
    record: &mut Vec<u8>,
) -> Result<(), DumpError> {
    let path = segment_path(position.lsn.segment());
    let error = |source| io_error(store, "read a segment", &path, source);
    let file = store.view.open(&path, OpenMode::Read).map_err(error)?;
    // A length from the disk: never more than the file has.
    let rest = file
        .len()
        .map_err(error)?
        .saturating_sub(u64::from(position.lsn.offset()));
    let len = u64::from(position.len_bytes).min(rest);
    record.clear();
    record.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    let count = file
        .read_at(record, u64::from(position.lsn.offset()))
        .map_err(error)?;
    record.truncate(count);
    Ok(())
}

/// Leaves out what is not unreadable but gone: of a running broker a message may have been settled, and its segment
/// freed, while we read.
pub(crate) fn confirm(
    store: &Store,
    unreadable: Vec<Unreadable>,
) -> Result<Vec<Unreadable>, DumpError> {
    if unreadable.is_empty() || !store.view.is_running() {
        return Ok(unreadable);
    }
    store.view.forget();
    let live = Live::load(store)?;
    let mut confirmed = Vec::new();
    for of_queue in unreadable.chunk_by(|a, b| a.queue == b.queue) {
        let queue = of_queue.first().map(|first| first.queue);
        let Some(image) = queue.and_then(|id| live.snapshot.image(id)) else {
            continue;
        };
        let (entries, _) = live.messages(store, image)?;
        for suspect in of_queue {
            let found = entries.binary_search_by_key(&suspect.entry.seq, |entry| entry.seq);
            let Some(entry) = found.ok().and_then(|index| entries.get(index)) else {
                continue;
            };
            if let Err(reason) = read_message(store, image.id, entry)? {
                confirmed.push(Unreadable {
                    queue: image.id,
                    entry: *entry,
                    reason,
                });
            }
        }
    }
    Ok(confirmed)
}
