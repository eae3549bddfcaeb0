//! From the socket to the session: as much at once as the client has sent and is good for.
//!
//! ```text
//!   narrow:  socket --up to 64 KiB--> input --Session::receive-->               anything
//!   framed:  socket --the rest of a frame--> input --Session::receive-->        a large frame alone in its buffer
//!   wide:    socket --224 KiB--> [rest][ a shared buffer ] --receive_sliced--> messages in it, copies of other whole frames
//!            or, when others hold too many of these, [ a buffer of the thread ] --receive_copied--> copies of whole frames
//!                                                        `-- what is not one, or not whole --> input, then as above
//! ```
//! Every read of a socket sends word to the client that there is room again, and wakes it: for a client that publishes faster
//! than it is read, reads of three and a half times the size halve what the kernel has to do for a message.
//!
//! 1. What stays alive of a read (a part of a large body, a frame that is held) shares the buffer it was read into, and is at
//!    least half of it or counted somewhere. So whole frames are copied out of a wide read, all but those that are half of it.
//!    A part of a large body is read to its frame's end, and the next one is expected to be as long: it has a buffer to itself, and
//!    is not copied until it is written to the log.
//!    Messages stay in the buffer of a wide read, and [`ReadBuffers`](crate::server::read_buffers::ReadBuffers) counts these buffers.
//! 2. A large buffer belongs to the thread, or to all, and a connection has it within one call only. What a busy connection holds is the
//!    frame that is not whole yet; one that is not to be served any further holds what it had sent until then.
//! 3. A client that is about to be stopped, because there is an alarm or memory is getting scarce, is read narrow, but for the
//!    rest of a large frame that has begun: what it has sent waits in its own memory.

use std::io;
use std::ops::RangeInclusive;

use bytes::BytesMut;

use super::{ConnectionTask, Socket, Transport, buffers};
use crate::session::{COPIED_FRAME_MAX_BYTES, Session};

/// First read buffer of a busy spell; an idle connection holds none.
const INPUT_MIN_BYTES: usize = 4 * 1024;
/// Read buffer of a busy connection of which nothing else is known.
const INPUT_MAX_BYTES: usize = 64 * 1024;
/// Narrow reads in one round, so that a fast publisher leaves room for its own deliveries.
const READS_PER_ROUND: usize = 2;
/// A wide read with what is left of the one before; the only one of its round if it brought much. The deliveries that it becomes
/// are a little longer, and should fit into one buffer.
const WIDE_BYTES: usize = buffers::BUFFER_BYTES - buffers::BUFFER_BYTES / 8;
const _: () = assert!(WIDE_BYTES <= 2 * COPIED_FRAME_MAX_BYTES as usize);
/// What a wide read brings at least to be followed by another one. Far below what begins them: a client that publishes a
/// window of messages, waits for the confirm and publishes the next one is read once a window, not in two pieces.
const WIDE_MIN_BYTES: usize = 16 * 1024;
/// A wide read that brought so much has probably left something, and others have their turn first.
const WIDE_MORE_BYTES: usize = WIDE_BYTES - WIDE_REST_MAX_BYTES;
/// Messages share the buffer of a wide read that brought so much, what was left of the read before included: where they take all
/// of it, they keep at most four times of what they are. One long message among short ones keeps it as well: `read_buffers` bounds
/// how many are kept.
const SHARED_MIN_BYTES: usize = buffers::BUFFER_BYTES / 4;
/// A wide read must leave less than this to be followed by another one: it is copied. A publish with a body of 64 KiB is.
const WIDE_REST_MAX_BYTES: usize = 66 * 1024;

/// Frames that are read into a buffer of their own size: more than a narrow read brings, and no more than a connection may have
/// because of a header alone.
const OWN_BUFFER_BYTES: RangeInclusive<usize> = INPUT_MAX_BYTES + 1..=buffers::BUFFER_BYTES;

/// How the next read is done.
#[derive(Debug)]
pub(super) struct Reading {
    /// Bytes of a narrow read.
    target_bytes: usize,
    /// The frame that is being read, or was read just now: one of [`OWN_BUFFER_BYTES`], or 0.
    frame_bytes: usize,
    /// The client sends whole publishes, faster than they are read.
    is_wide: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            target_bytes: INPUT_MIN_BYTES,
            frame_bytes: 0,
            is_wide: false,
        }
    }
}

impl Reading {
    /// A narrow read has brought `count` bytes.
    fn adapt(&mut self, count: usize) {
        if count >= self.target_bytes {
            self.target_bytes = (self.target_bytes * 2).min(INPUT_MAX_BYTES);
        } else if count < self.target_bytes / 4 {
            self.target_bytes = (self.target_bytes / 2).max(INPUT_MIN_BYTES);
        }
    }
}

impl ConnectionTask {
    /// Reads what the socket has, within bounds. It is read until it has nothing: only that arms its
    /// readiness again.
    pub(super) fn read_some(&mut self, transport: &mut Transport) -> io::Result<Socket> {
        for _ in 0..READS_PER_ROUND {
            if !self.wants_input() {
                return Ok(Socket::HasMore);
            }
            // Others may have filled the store since the last round. The round that follows asks again and
            // registers for the time when there is room.
            if self.session.is_running() && !self.hub.storage.has_room() {
                return Ok(Socket::HasMore);
            }
            let is_wide = self.may_read_wide();
            let read = match is_wide {
                true => self.read_wide(transport),
                false => self.read_narrow(transport),
            };
            match read {
                Ok(0) => return Ok(Socket::Ended),
                Ok(count) => {
                    self.has_read = true;
                    if is_wide && count >= WIDE_MORE_BYTES {
                        return Ok(Socket::HasMore);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    return Ok(Socket::HasMore);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.input.is_empty() {
                        // An idle connection holds no buffer.
                        self.input = BytesMut::new();
                    }
                    return Ok(Socket::Drained);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Socket::HasMore)
    }

    /// See (3).
    fn may_read_wide(&self) -> bool {
        self.reading.is_wide && self.leaves_little() && !self.is_held_back()
    }

    /// What was left of a read is short, and of a frame that can be copied out of a wide one.
    fn leaves_little(&self) -> bool {
        let is_copied = |bytes: usize| bytes <= COPIED_FRAME_MAX_BYTES as usize;
        self.input.len() < WIDE_REST_MAX_BYTES
            && Session::announced_frame_bytes(&self.input).is_none_or(is_copied)
    }

    /// The client is about to be stopped.
    fn is_held_back(&self) -> bool {
        self.session.is_alarmed() || !self.hub.publisher_pause().is_zero()
    }

    /// Gives the session what it did not take before.
    pub(super) fn receive_rest(&mut self) {
        let now_ms = self.hub.now_ms();
        if self.input.len() >= INPUT_MAX_BYTES {
            // It is of a wide read, see (1).
            self.session.receive_copied(&mut self.input, now_ms);
        }
        self.session.receive(&mut self.input, now_ms);
    }

    /// Reads into the connection's own buffer.
    fn read_narrow(&mut self, transport: &mut Transport) -> io::Result<usize> {
        if let Some(rest_bytes) = self.rest_of_large_frame() {
            return self.read_framed(transport, rest_bytes);
        }
        let target_bytes = self.reading.target_bytes;
        self.input.reserve(target_bytes);
        let count = transport.read(&mut self.input, target_bytes)?;
        if count > 0 {
            self.reading.adapt(count);
            self.take_narrow(count);
        }
        Ok(count)
    }

    /// Bytes until the end of the large frame that has begun; or of the next one, when the one before was as long as the client
    /// may make them: then it is probably a part of a body that goes on.
    fn rest_of_large_frame(&mut self) -> Option<usize> {
        if !self.session.is_running() {
            return None;
        }
        let expected = match self.input.is_empty() {
            true => Some(self.session.frame_max_bytes())
                .filter(|bytes| *bytes == self.reading.frame_bytes && !self.is_held_back()),
            false => Session::announced_frame_bytes(&self.input),
        };
        let is_large = |bytes: &usize| OWN_BUFFER_BYTES.contains(bytes);
        self.reading.frame_bytes = expected.filter(is_large).unwrap_or(0);
        let rest_bytes = self.reading.frame_bytes.checked_sub(self.input.len());
        rest_bytes.filter(|rest_bytes| *rest_bytes > 0)
    }

    /// Reads up to the end of a large frame.
    fn read_framed(&mut self, transport: &mut Transport, rest_bytes: usize) -> io::Result<usize> {
        if self.input.capacity() < self.reading.frame_bytes {
            let mut own = BytesMut::with_capacity(self.reading.frame_bytes);
            own.extend_from_slice(&self.input);
            self.input = own;
        }
        let count = transport.read(&mut self.input, rest_bytes)?;
        let is_expected =
            Session::announced_frame_bytes(&self.input) == Some(self.reading.frame_bytes);
        if count > 0 && is_expected {
            let now_ms = self.hub.now_ms();
            self.guarded(|task| task.session.receive(&mut task.input, now_ms));
        } else if count > 0 {
            self.reading.frame_bytes = 0;
            if self.input.len() < self.input.capacity() / 2 {
                // See (1).
                self.input = BytesMut::from(&self.input[..]);
            }
            self.take_narrow(count);
        }
        Ok(count)
    }

    /// Gives the session what a narrow read has brought.
    fn take_narrow(&mut self, count: usize) {
        let now_ms = self.hub.now_ms();
        if count >= INPUT_MAX_BYTES {
            // What is not left is what could have been read wide.
            self.guarded(|task| task.session.receive_copied(&mut task.input, now_ms));
            self.reading.is_wide = self.leaves_little();
        }
        self.guarded(|task| task.session.receive(&mut task.input, now_ms));
    }

    /// Reads into a large buffer, behind what is left of the read before: one that messages may share, if there is any.
    fn read_wide(&mut self, transport: &mut Transport) -> io::Result<usize> {
        // Whatever it is that comes so fast: the buffer stays until nobody is read like this.
        self.is_busy = true;
        if let Some(mut buffer) = self.hub.read_buffers.take() {
            let read = self.read_wide_into(&mut buffer, true, transport);
            self.hub.read_buffers.give(buffer);
            return read;
        }
        let mut buffer = buffers::take();
        let read = self.read_wide_into(&mut buffer, false, transport);
        buffers::give(buffer);
        read
    }

    fn read_wide_into(
        &mut self,
        buffer: &mut BytesMut,
        is_shared: bool,
        transport: &mut Transport,
    ) -> io::Result<usize> {
        buffer.extend_from_slice(&self.input);
        let room_bytes = WIDE_BYTES - buffer.len();
        let count = transport.read(buffer, room_bytes)?;
        if count == 0 {
            return Ok(0);
        }
        let now_ms = self.hub.now_ms();
        let is_shared = is_shared && buffer.len() >= SHARED_MIN_BYTES;
        self.guarded(|task| match is_shared {
            true => task.session.receive_sliced(buffer, now_ms),
            false => task.session.receive_copied(buffer, now_ms),
        });
        self.input = BytesMut::from(&buffer[..]);
        self.reading.is_wide = count >= WIDE_MIN_BYTES && self.leaves_little();
        self.guarded(|task| task.session.receive(&mut task.input, now_ms));
        Ok(count)
    }
}
