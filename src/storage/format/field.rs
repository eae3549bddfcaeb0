//! Fields at fixed places, and the macro that declares a structure as the list of them.
//!
//! A structure that leaves a hole, has two fields at one place or is no multiple of 8 bytes long does not compile.

/// Place of a little endian integer, or of a run of bytes, in a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Length in bytes.
    pub size: usize,
}

impl Field {
    /// First byte behind the field.
    #[inline]
    #[must_use]
    pub const fn end(self) -> usize {
        self.offset + self.size
    }

    /// Writes `value`.
    ///
    /// # Panics
    /// When the value does not fit or the structure is too short: both are programmer errors.
    #[inline]
    pub fn put(self, structure: &mut [u8], value: impl Into<u64>) {
        let value = value.into();
        let size = self.size.min(8);
        // One comparison, and with a field that is known when this is compiled none: it is in the way of every record.
        assert!(
            size == 8 || value >> (8 * size) == 0,
            "the value fits the field"
        );
        structure[self.offset..self.end()].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    /// Reads the value of a field of at most 8 bytes.
    ///
    /// # Panics
    /// When the structure is too short: decoders split off the whole structure first.
    #[inline]
    #[must_use]
    pub fn get(self, structure: &[u8]) -> u64 {
        let mut bytes = [0; 8];
        bytes[..self.size].copy_from_slice(&structure[self.offset..self.end()]);
        u64::from_le_bytes(bytes)
    }

    /// Reads a field of at most 4 bytes.
    ///
    /// # Panics
    /// As [`Field::get`], and when the field is longer.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the field has at most 4 bytes"
    )]
    pub fn get_u32(self, structure: &[u8]) -> u32 {
        assert!(self.size <= 4, "the field fits 32 bits");
        self.get(structure) as u32
    }
}

/// True when the fields tile `[0, size)` without hole or overlap.
pub(super) const fn is_tiled(fields: &[(&str, Field)], size: usize) -> bool {
    let mut at = 0;
    let mut index = 0;
    while index < fields.len() {
        if fields[index].1.offset != at {
            return false;
        }
        at = fields[index].1.end();
        index += 1;
    }
    at == size
}

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $size:expr, { $($(#[$fdoc:meta])* $field:ident $offset:literal + $len:literal $text:literal)+ }) => {
        $(#[$doc])*
        pub mod $name {
            use super::Field;
            /// Length of the structure in bytes.
            pub const SIZE: usize = $size;
            $($(#[$fdoc])* #[doc = concat!("Field `", $text, "`.")]
            pub const $field: Field = Field { offset: $offset, size: $len };)+
            /// All fields with their names, in order.
            pub const FIELDS: &[(&str, Field)] = &[$(($text, $field)),+];
            const _: () = assert!(super::is_tiled(FIELDS, SIZE));
            const _: () = assert!(SIZE.is_multiple_of(8));
        }
    };
}

pub(super) use layout;

#[cfg(test)]
mod tests {
    use crate::storage::format::record_header;

    #[test]
    fn fields_keep_their_neighbours() {
        let mut header = [0xff; record_header::SIZE];
        record_header::COUNT.put(&mut header, 0x0102_0304u32);
        assert_eq!(record_header::COUNT.get_u32(&header), 0x0102_0304);
        assert_eq!(header.iter().filter(|byte| **byte == 0xff).count(), 28);
        assert_eq!(header.get(16), Some(&4), "little endian");
    }
}
