//! Running out of file descriptors.
//!
//! Like space on a disk they come back, and unlike it no file that is cut short or removed gives one. So the error has a mark of
//! its own, which no `ErrorKind` is: both disks set it, and whoever waits for room looks for it first.

use std::error::Error;
use std::fmt;
use std::io;

/// The mark, with the text of the error.
#[derive(Debug)]
struct OutOfDescriptors(String);

impl fmt::Display for OutOfDescriptors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Error for OutOfDescriptors {}

/// The error of an operation that found no file descriptor.
pub(super) fn out_of_descriptors(text: String) -> io::Error {
    io::Error::other(OutOfDescriptors(text))
}

/// True for an operation of a [`Disk`](super::Disk) that found no file descriptor, of the process or of the system.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let source = error.get_ref();
    source.is_some_and(|source| source.is::<OutOfDescriptors>())
}
