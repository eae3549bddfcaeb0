//! The socket under a connection, in the clear.
//!
//! The connection's task asks for readiness and then reads and writes what there is; nothing here waits but
//! [`Transport::ready`].

use std::io::{self, IoSlice};

use bytes::{Buf, BytesMut};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use crate::session::Output;

/// Chunks of one vectored write.
const WRITE_SLICES: usize = 64;

/// See the module.
pub(in crate::server) struct Transport {
    stream: TcpStream,
}

impl Transport {
    /// A socket without encryption.
    pub(in crate::server) fn plain(stream: TcpStream) -> Self {
        Self { stream }
    }

    /// Waits until the socket can be read or written. Cancel safe.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.stream.ready(interest).await
    }

    /// Reads what there is into the spare capacity of `input`; 0 at the end, `WouldBlock` when there is nothing.
    pub(super) fn read(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        self.stream.try_read_buf(input)
    }

    /// Writes what the socket takes without waiting.
    pub(super) fn write(&mut self, output: &mut Output) -> io::Result<()> {
        while output.has_remaining() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let count = output.chunks_vectored(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            match self.stream.try_write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// True while something that [`write`](Self::write) took has not left.
    pub(super) fn has_unwritten(&self) -> bool {
        false
    }

    /// Nothing more will be written.
    pub(super) fn say_goodbye(&mut self) {}

    /// True when the client has closed its side, or all of the connection, whatever it sent before and was not read.
    pub(super) async fn is_closed_by_peer(&self) -> bool {
        tokio::select! {
            biased;
            ready = self.stream.ready(Interest::READABLE | Interest::ERROR) => {
                ready.is_ok_and(|ready| ready.is_read_closed() || ready.is_error())
            }
            () = std::future::ready(()) => false,
        }
    }
}
