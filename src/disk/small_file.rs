//! Files that people write and a start or a signal reads as a whole: the configuration, certificates, keys.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Larger files are something else: a wrong path must not fill the memory.
pub const SMALL_FILE_MAX_BYTES: u64 = 4 << 20;

/// All bytes of the file.
///
/// # Errors
/// When it cannot be read, or is larger than [`SMALL_FILE_MAX_BYTES`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(SMALL_FILE_MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SMALL_FILE_MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the file is larger than 4 MiB",
        ));
    }
    Ok(bytes)
}

/// All of the file as text.
///
/// # Errors
/// See [`read`]; also when it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "the file is not UTF-8 text");
    String::from_utf8(read(path)?).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_text_is_read_as_text() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        std::fs::write(&path, "a = 1").expect("written");
        assert_eq!(read_text(&path).expect("text"), "a = 1");
        std::fs::write(&path, [0xff]).expect("written");
        let error = read_text(&path).expect_err("no text").kind();
        assert_eq!(error, io::ErrorKind::InvalidData);
        let file = File::create(&path).expect("made");
        file.set_len(SMALL_FILE_MAX_BYTES + 1).expect("grown");
        assert_eq!(
            read(&path).expect_err("too large").kind(),
            io::ErrorKind::FileTooLarge
        );
        assert!(read(directory.path()).is_err());
    }
}
