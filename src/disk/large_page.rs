//! Memory for long transfers past the cache of the system.
//!
//! A read of 1 MiB into pages of 4 KiB pins 256 of them and gives the device as many pieces; into one large page it is pinned
//! once and is one piece, which takes half the processor's time. Where the system has no large pages, this is memory as any
//! other.

use std::io;

use memmap2::MmapMut;

/// What systems on which large pages matter have.
pub const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Memory of [`LARGE_PAGE_BYTES`], zeroed and aligned to as many.
#[derive(Debug)]
pub struct LargePage {
    map: MmapMut,
    /// Where the page begins in it.
    start: usize,
}

impl LargePage {
    /// Memory that was not used before.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn new() -> io::Result<Self> {
        // Wherever it begins, one whole page lies in it. What is beside that is never touched, and so takes no memory.
        let map = MmapMut::map_anon(2 * LARGE_PAGE_BYTES)?;
        #[cfg(target_os = "linux")]
        // Small pages are as good, only slower.
        let _ = map.advise(memmap2::Advice::HugePage);
        let at = map.as_ptr().addr();
        let start = at.next_multiple_of(LARGE_PAGE_BYTES) - at;
        Ok(Self { map, start })
    }
}

impl AsRef<[u8]> for LargePage {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        &self.map[self.start..self.start + LARGE_PAGE_BYTES]
    }
}

impl AsMut<[u8]> for LargePage {
    #[inline]
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + LARGE_PAGE_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_aligned_zeroed_and_its_own() {
        let mut pages: Vec<LargePage> = (0..3).map(|_| LargePage::new().expect("room")).collect();
        for (fill, page) in (1..).zip(&mut pages) {
            let bytes = page.as_mut();
            assert_eq!(bytes.len(), LARGE_PAGE_BYTES);
            assert_eq!(bytes.as_ptr().addr() % LARGE_PAGE_BYTES, 0);
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(fill);
        }
        for (fill, page) in (1..).zip(&pages) {
            assert!(page.as_ref().iter().all(|byte| *byte == fill));
        }
    }
}
