//! The whole state of a simulated disk, behind one mutex: names, files, faults to come and the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar};

use super::content::Inode;
use super::journal::{Action, Operation};
use super::plan::{Effect, Plan};
use super::random::Random;
use crate::disk::FreeSpace;

/// Name of a file inside the simulator; never reused.
pub(super) type InodeId = u64;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File(InodeId),
}

impl Node {
    pub(super) const fn inode(self) -> Option<InodeId> {
        match self {
            Self::Directory => None,
            Self::File(id) => Some(id),
        }
    }
}

/// A change of a directory that a crash keeps or loses as a whole.
#[derive(Clone, Debug)]
pub(super) enum EntryChange {
    Create {
        path: PathBuf,
        node: Node,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: InodeId,
    },
    Remove {
        path: PathBuf,
        inode: InodeId,
    },
}

impl EntryChange {
    /// Applies the change to `names`. What it takes away is taken only from the file it was made for, since an
    /// earlier change may have been lost.
    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        let mut take = |path: &Path, inode: InodeId| {
            if names.get(path) == Some(&Node::File(inode)) {
                names.remove(path);
            }
        };
        match self {
            Self::Create { path, node } => drop(names.insert(path.clone(), *node)),
            Self::Remove { path, inode } => take(path, *inode),
            Self::Rename { from, to, inode } => {
                take(from, *inode);
                names.insert(to.clone(), Node::File(*inode));
            }
        }
    }
}

/// A directory change that is not on the medium yet.
#[derive(Clone, Debug)]
pub(super) struct PendingEntry {
    /// Order among all changes of the disk.
    pub(super) seq: u64,
    /// The directory whose sync makes it durable.
    pub(super) directory: PathBuf,
    pub(super) change: EntryChange,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) random: Random,
    /// Names as the running process sees them. The root itself is not listed.
    pub(super) live: BTreeMap<PathBuf, Node>,
    /// Names on the medium.
    pub(super) durable: BTreeMap<PathBuf, Node>,
    pub(super) pending_entries: Vec<PendingEntry>,
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    pub(super) next_inode: InodeId,
    /// Number of the last unsynced change.
    pub(super) seq: u64,
    pub(super) journal: Vec<Operation>,
    pub(super) crash_at: Option<u64>,
    pub(super) is_crashed: bool,
    pub(super) plan: Plan,
    /// `None` means that the disk is never full.
    pub(super) capacity_bytes: Option<u64>,
    pub(super) is_allocate_supported: bool,
    pub(super) is_bypass_supported: bool,
    /// 0 of 0 bytes is all that is said about space.
    pub(super) is_size_unknown: bool,
    pub(super) is_lying: bool,
    pub(super) locks: BTreeSet<PathBuf>,
    /// Syncs of files wait until this is lifted.
    pub(super) are_syncs_held: bool,
    pub(super) held_sync_count: usize,
    /// A sync began to wait or may go on, or the power failed.
    pub(super) changed: Arc<Condvar>,
    pub(super) power_cycle_count: u64,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending_entries: Vec::new(),
            inodes: BTreeMap::new(),
            next_inode: 0,
            seq: 0,
            journal: Vec::new(),
            crash_at: None,
            is_crashed: false,
            plan: Plan::default(),
            capacity_bytes: None,
            is_allocate_supported: true,
            is_bypass_supported: false,
            is_size_unknown: false,
            is_lying: false,
            locks: BTreeSet::new(),
            are_syncs_held: false,
            held_sync_count: 0,
            changed: Arc::default(),
            power_cycle_count: 0,
        }
    }

    /// A healthy disk of the same make as `dead`, with what survived of it.
    pub(super) fn reborn(
        dead: &Self,
        names: BTreeMap<PathBuf, Node>,
        inodes: BTreeMap<InodeId, Inode>,
    ) -> Self {
        Self {
            random: dead.random.clone(),
            live: names.clone(),
            durable: names,
            inodes,
            next_inode: dead.next_inode,
            seq: dead.seq,
            capacity_bytes: dead.capacity_bytes,
            is_allocate_supported: dead.is_allocate_supported,
            is_bypass_supported: dead.is_bypass_supported,
            is_size_unknown: dead.is_size_unknown,
            power_cycle_count: dead.power_cycle_count + 1,
            ..Self::new(0)
        }
    }

    /// Lets the power fail, also for those who wait.
    pub(super) fn crash(&mut self) {
        self.is_crashed = true;
        self.changed.notify_all();
    }

    /// Refuses everything once the power is off.
    pub(super) fn check_alive(&self) -> io::Result<()> {
        if self.is_crashed {
            Err(io::Error::other(Crashed))
        } else {
            Ok(())
        }
    }

    /// Counts an operation that changes the disk, unless the power fails at it. Answers its index in the journal
    /// and the planned fault. A caller that ends with an error reports it with [`State::note`].
    pub(super) fn begin(
        &mut self,
        action: Action,
        path: &Path,
        inode: Option<InodeId>,
    ) -> io::Result<(usize, Option<Effect>)> {
        self.check_alive()?;
        let number = self.journal.len();
        if self.crash_at == Some(number as u64) {
            self.crash();
            return Err(io::Error::other(Crashed));
        }
        let effect = self.plan.strike(action.trigger());
        let is_inherited = inode
            .and_then(|id| self.inodes.get(&id))
            .is_some_and(|i| i.is_inherited);
        let is_name_durable = match inode {
            Some(id) => self.is_durable_as(path, Node::File(id)),
            None => self.is_durable_as(path, Node::Directory),
        };
        let path = path.to_owned();
        self.journal.push(Operation {
            action,
            path,
            is_ok: true,
            is_name_durable,
            is_inherited,
        });
        Ok((number, effect))
    }

    fn is_durable_as(&self, path: &Path, node: Node) -> bool {
        let is_root = path.as_os_str().is_empty();
        let has_parents = path
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
            .all(|parent| self.durable.get(parent) == Some(&Node::Directory));
        is_root || (has_parents && self.durable.get(path) == Some(&node))
    }

    /// One whole operation: begin, `run` unless a planned fault hits it, note the outcome.
    pub(super) fn operate<T>(
        &mut self,
        action: Action,
        path: &Path,
        inode: Option<InodeId>,
        run: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        let (number, effect) = self.begin(action, path, inode)?;
        let outcome = match effect {
            Some(effect) if effect != Effect::LostFlush => Err(effect.error()),
            _ => run(self),
        };
        self.note(number, outcome)
    }

    /// Writes the outcome of operation `number` into the journal and passes it on.
    pub(super) fn note<T>(&mut self, number: usize, outcome: io::Result<T>) -> io::Result<T> {
        self.journal[number].is_ok = outcome.is_ok();
        outcome
    }

    pub(super) fn inode(&mut self, id: InodeId) -> &mut Inode {
        self.inodes
            .get_mut(&id)
            .expect("a file lives while a handle or a name leads to it")
    }

    /// The file called `path`.
    pub(super) fn find_file(&self, path: &Path) -> io::Result<InodeId> {
        match self.live.get(path) {
            Some(Node::File(id)) => Ok(*id),
            Some(Node::Directory) => Err(ErrorKind::IsADirectory.into()),
            None if path.as_os_str().is_empty() => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Answers an error when `path` is no directory.
    pub(super) fn check_directory(&self, path: &Path) -> io::Result<()> {
        match self.live.get(path) {
            _ if path.as_os_str().is_empty() => Ok(()),
            Some(Node::Directory) => Ok(()),
            Some(Node::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn push_entry(&mut self, directory: &Path, change: EntryChange) {
        change.apply(&mut self.live);
        self.seq += 1;
        self.pending_entries.push(PendingEntry {
            seq: self.seq,
            directory: directory.to_owned(),
            change,
        });
    }

    /// A file without a name.
    pub(super) fn create_inode(&mut self, name: &Path) -> InodeId {
        self.next_inode += 1;
        let inode = Inode::new(name.to_owned());
        self.inodes.insert(self.next_inode, inode);
        self.next_inode
    }

    pub(super) fn create_file(&mut self, path: &Path) -> io::Result<InodeId> {
        let parent = parent_of(path)?;
        self.check_directory(parent)?;
        if self.live.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let id = self.create_inode(path);
        self.inode(id).is_linked = true;
        let change = EntryChange::Create {
            path: path.to_owned(),
            node: Node::File(id),
        };
        self.push_entry(parent, change);
        Ok(id)
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let parent = parent_of(path)?;
        self.check_directory(parent)?;
        match self.live.get(path) {
            Some(Node::Directory) => Ok(()),
            Some(Node::File(_)) => Err(ErrorKind::AlreadyExists.into()),
            None => {
                let change = EntryChange::Create {
                    path: path.to_owned(),
                    node: Node::Directory,
                };
                self.push_entry(parent, change);
                Ok(())
            }
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (parent, inode) = (parent_of(from)?, self.find_file(from)?);
        if parent != parent_of(to)? {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "a rename stays in its directory",
            ));
        }
        if from == to {
            return Ok(());
        }
        if self.live.contains_key(to) {
            let replaced = self.find_file(to)?;
            self.inode(replaced).is_linked = false;
        }
        self.inode(inode).name = to.to_owned();
        let change = EntryChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            inode,
        };
        self.push_entry(parent, change);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let inode = self.find_file(path)?;
        self.inode(inode).is_linked = false;
        let change = EntryChange::Remove {
            path: path.to_owned(),
            inode,
        };
        self.push_entry(parent_of(path)?, change);
        Ok(())
    }

    /// Brings the changes of one directory to the medium.
    pub(super) fn sync_dir(&mut self, path: &Path) {
        for entry in self
            .pending_entries
            .extract_if(.., |entry| entry.directory == path)
        {
            entry.change.apply(&mut self.durable);
        }
        self.forget_dead_files();
    }

    /// A directory sync that failed: some changes reach the medium, and no later sync brings the others.
    pub(super) fn fail_sync_dir(&mut self, path: &Path) {
        let mut is_first = true;
        for entry in self
            .pending_entries
            .extract_if(.., |entry| entry.directory == path)
        {
            if !is_first && self.random.chance(50) {
                entry.change.apply(&mut self.durable);
            }
            is_first = false;
        }
    }

    /// Frees files that no handle, no name and no crash can lead to.
    fn forget_dead_files(&mut self) {
        let mut pending = BTreeSet::new();
        for entry in &self.pending_entries {
            match entry.change {
                EntryChange::Create { node, .. } => pending.extend(node.inode()),
                EntryChange::Rename { inode, .. } | EntryChange::Remove { inode, .. } => {
                    pending.insert(inode);
                }
            }
        }
        let durable: BTreeSet<InodeId> = self.durable.values().filter_map(|n| n.inode()).collect();
        self.inodes.retain(|id, inode| {
            let is_open = inode.is_linked || inode.handle_count > 0;
            is_open || durable.contains(id) || pending.contains(id)
        });
    }

    /// Bytes that can still be taken.
    pub(super) fn free_bytes(&self) -> u64 {
        let Some(capacity_bytes) = self.capacity_bytes else {
            return u64::MAX;
        };
        let used_bytes = self.inodes.values().map(Inode::used_bytes).sum();
        capacity_bytes.saturating_sub(used_bytes)
    }

    pub(super) fn free_space(&self) -> FreeSpace {
        match self.capacity_bytes {
            _ if self.is_size_unknown => FreeSpace {
                available_bytes: 0,
                total_bytes: 0,
            },
            Some(total_bytes) => FreeSpace {
                available_bytes: self.free_bytes(),
                total_bytes,
            },
            // As large as a large disk, so that sums of it do not overflow.
            None => FreeSpace {
                available_bytes: 1 << 50,
                total_bytes: 1 << 50,
            },
        }
    }
}

/// The directory of `path`; the root has none.
fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| ErrorKind::InvalidInput.into())
}

/// The error of every call after the power has failed.
#[derive(Debug)]
pub(super) struct Crashed;

impl std::fmt::Display for Crashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the power of the simulated disk has failed")
    }
}

impl std::error::Error for Crashed {}
