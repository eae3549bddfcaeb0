//! A file system that a test may fill.
//!
//! It is a small tmpfs, mounted by the test; that takes root, which CI has. Without it the test says that it proves
//! nothing and passes.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::TestBroker;

/// A small file system of its own.
pub(crate) struct SmallDisk {
    place: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` when this process may not mount anything.
    #[expect(
        clippy::print_stdout,
        reason = "a test that proves nothing must say so"
    )]
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let place = tempfile::tempdir().expect("a temporary directory can be made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(place.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { place }),
            refused => {
                println!("SKIPPED: cannot mount a tmpfs, so nothing is proved here: {refused:?}");
                None
            }
        }
    }

    /// A broker on it with small segments, and no alarm before the last byte is gone.
    pub(crate) fn start_broker(&self) -> TestBroker {
        TestBroker::builder()
            .data_dir(self.data_dir())
            .arg("--segment-size=1MiB")
            .arg("--disk-free-limit=0")
            .start()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.place.path().join("data")
    }

    pub(crate) fn filler(&self) -> PathBuf {
        self.place.path().join("somebody's file")
    }

    /// Takes every byte that is free.
    pub(crate) fn fill(&self) {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.filler())
            .expect("a file can be made");
        for len in [1 << 20, 4096, 1] {
            let bytes = vec![b'x'; len];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    pub(crate) fn give_back(&self) {
        fs::remove_file(self.filler()).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.place.path())
            .output();
    }
}
