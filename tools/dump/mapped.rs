//! A sealed segment that is mapped, as a file to read from: one copy instead of a system call for each record that
//! the index is checked against.

use std::io::{self, IoSlice};
use std::ops::Range;

use stratamq::disk::DiskFile;

use crate::view::refused;

/// See the module.
pub(crate) struct MappedFile {
    map: Box<dyn AsRef<[u8]> + Send + Sync>,
}

impl MappedFile {
    pub(crate) fn new(map: Box<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self { map }
    }

    fn bytes(&self) -> &[u8] {
        (*self.map).as_ref()
    }
}

impl DiskFile for MappedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.bytes().get(from..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        let (to, _) = buffer.split_at_mut(count);
        to.copy_from_slice(rest.get(..count).unwrap_or_default());
        Ok(count)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }
    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        refused()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        refused()
    }
    fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }
    fn sync_data(&self) -> io::Result<()> {
        refused()
    }
    fn sync_all(&self) -> io::Result<()> {
        refused()
    }
    fn bypass_cache(&self) -> bool {
        false
    }
    fn bypasses_cache(&self) -> bool {
        false
    }
    fn drop_cache(&self) -> io::Result<()> {
        refused()
    }
    fn drop_range(&self, _: Range<u64>) -> io::Result<()> {
        refused()
    }
}
