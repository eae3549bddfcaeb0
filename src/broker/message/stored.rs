//! Where the bytes of a message are.

use bytes::Bytes;
use smallvec::SmallVec;

use super::StoredBody;
use crate::cache_line::touch;
use crate::storage::types::Payload;

/// Longest head that lies in its message: as much as fits.
pub(super) const SHORT_MAX_BYTES: usize = 62;

/// The payload.
#[derive(Debug)]
pub(super) enum Stored {
    /// A head of at most [`SHORT_MAX_BYTES`], body included: the first `len` of `bytes`.
    Short {
        len: u8,
        bytes: [u8; SHORT_MAX_BYTES],
    },
    /// The head, then the parts of a large body; never none.
    Parts(SmallVec<[Bytes; 1]>),
}

impl Stored {
    /// A head that is put together of these pieces.
    #[inline]
    pub(super) fn of_pieces<const N: usize>(pieces: [&[u8]; N]) -> Self {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        if let Some(short) = Self::short(len, &pieces) {
            return short;
        }
        let mut head = Vec::with_capacity(len);
        for piece in pieces {
            head.extend_from_slice(piece);
        }
        Self::Parts(SmallVec::from_buf([Bytes::from(head)]))
    }

    /// The same when it is short: `len` is the length of all pieces.
    #[inline]
    fn short(len: usize, pieces: &[&[u8]]) -> Option<Self> {
        if len > SHORT_MAX_BYTES {
            return None;
        }
        let mut bytes = [0; SHORT_MAX_BYTES];
        let mut rest = bytes.get_mut(..len)?;
        for piece in pieces {
            let (place, behind) = rest.split_at_mut_checked(piece.len())?;
            place.copy_from_slice(piece);
            rest = behind;
        }
        let len = u8::try_from(len).ok()?;
        Some(Self::Short { len, bytes })
    }

    /// A head, and the parts of a body that is not in it.
    pub(super) fn of_parts(head: Bytes, kept_body: &[Bytes]) -> Self {
        if kept_body.is_empty()
            && let Some(short) = Self::short(head.len(), &[&head])
        {
            return short;
        }
        let mut parts = SmallVec::<[Bytes; 1]>::from_buf([head]);
        parts.extend(kept_body.iter().cloned());
        Self::Parts(parts)
    }

    #[inline]
    pub(super) fn head(&self) -> &[u8] {
        match self {
            // Lossless, and never longer.
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Parts(parts) => &parts[0],
        }
    }

    #[inline]
    pub(super) fn payload(&self) -> Payload<'_> {
        match self {
            Self::Short { .. } => Payload {
                front: self.head(),
                parts: &[],
            },
            Self::Parts(parts) => Payload::from(&parts[..]),
        }
    }
    /// Bytes of the payload.
    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Short { len, .. } => usize::from(*len),
            Self::Parts(parts) => parts.iter().map(Bytes::len).sum(),
        }
    }

    /// The body, which begins at `body_at` if it is in the head.
    #[inline]
    pub(super) fn body(&self, body_at: usize) -> StoredBody<'_> {
        let (front, parts, skip_bytes): (&[u8], &[Bytes], _) = match self {
            Self::Short { .. } => (&self.head()[body_at..], &[], 0),
            Self::Parts(parts) if parts.len() > 1 => (&[], &parts[1..], 0),
            Self::Parts(parts) => (&[], parts, body_at),
        };
        StoredBody {
            front,
            parts,
            skip_bytes,
        }
    }

    /// [`touch`]es what is copied when the message goes: of a body in several parts the first.
    #[inline]
    pub(super) fn touch(&self) -> u8 {
        match self {
            Self::Short { bytes, .. } => touch(bytes),
            Self::Parts(parts) => {
                let parts = parts.iter().take(2);
                parts.fold(0, |seen, part| seen ^ touch(part))
            }
        }
    }
}
