//! The socket under a connection, in the clear or with TLS.
//!
//! ```text
//!  clear:  socket <--------------------------------------------> Session
//!  TLS:    socket <--records--> rustls::ServerConnection <-----> Session
//! ```
//! A read that did not fill its buffer has emptied the socket, and a write that was cut short has filled it. The kernel says when
//! that changes, so nobody asks it before: every other call would be in vain. One exception is left alone, for AMQP does not know
//! it: a read ends at a mark of urgent data (with `SO_OOBINLINE`, too), and what is behind it is read when the next bytes come.
//!
//! The connection's task asks for readiness and then reads and writes what there is; nothing here waits but
//! [`Transport::ready`] and [`Transport::shake_hands`]. TLS is a state machine without IO of its own, so both kinds are
//! driven in the same way, and a connection in the clear pays nothing for the other kind.

use std::io::{self, BufRead, IoSlice, Read, Write};

use bytes::{Buf, BufMut, BytesMut};
use rustls::ServerConnection;
use rustls::pki_types::CertificateDer;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use crate::session::Output;

/// Reads of a socket with TLS before the rounds behind it have their turn.
const RECEIVES_PER_READ: usize = 256;
/// Chunks of one vectored write.
const WRITE_SLICES: usize = 64;

/// See the module.
pub(in crate::server) struct Transport {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
}

/// A socket as the blocking traits see it: `WouldBlock` when it is not ready.
struct Ciphertext<'a>(&'a TcpStream);

impl Read for Ciphertext<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room_bytes = buffer.len();
        let read = || self.0.try_read(buffer);
        once(self.0, Interest::READABLE, room_bytes, read)
    }
}

impl Write for Ciphertext<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let write = || self.0.try_write(buffer);
        once(self.0, Interest::WRITABLE, buffer.len(), write)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        write_vectored(self.0, buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport {
    /// A socket without encryption.
    pub(in crate::server) fn plain(stream: TcpStream) -> Self {
        Self { stream, tls: None }
    }

    /// A socket with TLS; [`shake_hands`](Self::shake_hands) comes first.
    pub(in crate::server) fn tls(stream: TcpStream, tls: ServerConnection) -> Self {
        Self {
            stream,
            tls: Some(Box::new(tls)),
        }
    }

    /// Waits for the end of the TLS handshake. Dropping it leaves a socket that is good for nothing.
    ///
    /// # Errors
    /// What is wrong with the socket or the client's messages; the client has been sent an alert, if it can take one.
    pub(in crate::server) async fn shake_hands(&mut self) -> io::Result<()> {
        while let Some(tls) = &mut self.tls {
            send_records(tls, &self.stream)?;
            if !tls.is_handshaking() {
                return Ok(());
            }
            let interest = match tls.wants_write() {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            self.stream.ready(interest).await?;
            match receive_records(tls, &self.stream) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The client's certificate, when it has shown one and it was found valid.
    pub(in crate::server) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.peer_certificates()?.first()
    }

    /// The version of TLS that was agreed on; `None` in the clear.
    pub(super) fn tls_version(&self) -> Option<&'static str> {
        self.tls.as_ref()?.protocol_version()?.as_str()
    }

    /// Waits until the socket can be read or written. Cancel safe.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.stream.ready(interest).await
    }

    /// Reads what there is into the spare capacity of `input`, of which it takes up to `max_bytes`; 0 at the end, `WouldBlock` when there is nothing,
    /// `Interrupted` when there may be more but others should have their turn.
    pub(super) fn read(&mut self, input: &mut BytesMut, max_bytes: usize) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            let room_bytes = spare(input).min(max_bytes);
            let mut input = input.limit(max_bytes);
            let read = || self.stream.try_read_buf(&mut input);
            return once(&self.stream, Interest::READABLE, room_bytes, read);
        };
        // Records are small and reads of the socket smaller: as many as fit, for the rounds behind this are not free.
        let mut count = 0;
        for _ in 0..RECEIVES_PER_READ {
            match take_plaintext(tls, input, max_bytes - count)? {
                // The end, or no room left.
                Some(0) => return Ok(count),
                Some(taken) => count += taken,
                None => match receive_records(tls, &self.stream) {
                    Ok(_) => {}
                    // An error stays: the next call meets it again.
                    Err(_) if count > 0 => return Ok(count),
                    Err(error) => return Err(error),
                },
            }
        }
        // Records may be empty, without end.
        match count {
            0 => Err(io::ErrorKind::Interrupted.into()),
            count => Ok(count),
        }
    }

    /// Writes what the socket takes without waiting.
    pub(super) fn write(&mut self, output: &mut Output) -> io::Result<()> {
        loop {
            if let Some(tls) = &mut self.tls {
                send_records(tls, &self.stream)?;
                if tls.wants_write() {
                    return Ok(());
                }
            }
            if !output.has_remaining() {
                return Ok(());
            }
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let count = output.chunks_vectored(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            let written = match &mut self.tls {
                None => write_vectored(&self.stream, slices),
                // Bounded by the state machine's own buffer, which was emptied above.
                Some(tls) => tls.writer().write_vectored(slices),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// True while something that [`write`](Self::write) took has not left.
    pub(super) fn has_unwritten(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Nothing more will be written: with TLS the client is told, so that it can tell an end from a cut.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
    }

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

fn write_vectored(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let offered_bytes = slices.iter().map(|slice| slice.len()).sum();
    once(stream, Interest::WRITABLE, offered_bytes, || match slices {
        // The system has less to do for one.
        [slice] => stream.try_write(slice),
        slices => stream.try_write_vectored(slices),
    })
}

/// Reads or writes with `call`, for which there are `room_bytes`, and takes the socket for not ready any more after a short
/// count: what the kernel has said before the call holds no longer, and what it says since stays. So the next call says
/// `WouldBlock` at once, unless more has come, or left.
fn once(
    stream: &TcpStream,
    interest: Interest,
    room_bytes: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut outcome = Err(io::ErrorKind::WouldBlock.into());
    // Its own outcome is ours, but for a short count, which only clears what was known.
    let _ = stream.try_io(interest, || {
        outcome = call();
        match &outcome {
            Ok(count) if (1..room_bytes).contains(count) => Err(io::ErrorKind::WouldBlock.into()),
            // Where the call would have blocked it has cleared it already.
            Ok(_) | Err(_) => Ok(()),
        }
    });
    outcome
}

/// How much fits into `input` as it is.
fn spare(input: &BytesMut) -> usize {
    input.capacity() - input.len()
}

/// Moves up to `max_bytes` decrypted bytes into the spare capacity of `input`: how many, 0 when there will be no more or there is no room,
/// `None` when more records are needed.
fn take_plaintext(
    tls: &mut ServerConnection,
    input: &mut BytesMut,
    max_bytes: usize,
) -> io::Result<Option<usize>> {
    let mut plaintext = tls.reader();
    match plaintext.fill_buf() {
        Ok(chunk) => {
            let room_bytes = spare(input).min(max_bytes);
            let taken = chunk.get(..room_bytes).unwrap_or(chunk);
            let count = taken.len();
            input.extend_from_slice(taken);
            plaintext.consume(count);
            Ok(Some(count))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // The socket has ended without a word: as it does in the clear.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

/// Takes what the socket has; 0 at its end.
fn receive_records(tls: &mut ServerConnection, stream: &TcpStream) -> io::Result<usize> {
    let count = tls.read_tls(&mut Ciphertext(stream))?;
    if let Err(error) = tls.process_new_packets() {
        // The alert that says why; a client that does not take it goes without.
        let _ = send_records(tls, stream);
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(count)
}

/// Writes what the socket takes.
fn send_records(tls: &mut ServerConnection, stream: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut Ciphertext(stream)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// The next bytes, however long they take; a readiness that was lost fails.
    async fn next(transport: &mut Transport, input: &mut BytesMut, max_bytes: usize) -> usize {
        loop {
            match transport.read(input, max_bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ready = transport.ready(Interest::READABLE);
                    let ready = tokio::time::timeout(Duration::from_secs(20), ready).await;
                    ready.expect("readiness is lost").expect("a socket");
                }
                outcome => return outcome.expect("a read"),
            }
        }
    }

    #[tokio::test]
    async fn a_read_that_fills_its_limit_keeps_the_socket_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(address).await.expect("a client");
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut transport = Transport::plain(stream);
        client.write_all(b"0123456789").await.expect("written");
        let mut input = BytesMut::with_capacity(1024);
        // All of it comes at once, and nothing afterwards.
        assert_eq!(next(&mut transport, &mut input, 4).await, 4);
        assert_eq!(next(&mut transport, &mut input, 4).await, 4);
        assert_eq!(next(&mut transport, &mut input, 2).await, 2);
        client.write_all(b"ab").await.expect("written");
        assert_eq!(next(&mut transport, &mut input, 4).await, 2);
        client.write_all(b"cd").await.expect("written");
        assert_eq!(next(&mut transport, &mut input, 4).await, 2);
        drop(client);
        assert_eq!(next(&mut transport, &mut input, 4).await, 0);
        assert_eq!(&input[..], b"0123456789abcd");
    }
}
