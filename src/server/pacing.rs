//! No pacing between two sockets of one machine.
//!
//! BBR, the default of some systems, sends at the rate that it believes a line to have. Between two sockets of one machine there
//! is no line: every pause is a timer's interrupt, on the processor that the broker would use. For all others the operator's
//! choice stays. The broker's own sockets go this way, and those of the stand-in it is compared with.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;

/// A congestion control that does not pace, and that kernels usually have.
const UNPACED: &[u8] = b"cubic";
/// Those that do begin so.
const PACED: &[u8] = b"bbr";

/// Takes a socket out of a congestion control that paces, if `peer` is on this machine; `local` is its own address.
///
/// # Errors
/// The socket's; it is as it was then.
pub fn spare(socket: SockRef<'_>, local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
    let is_here = local.ip() == peer.ip() || peer.ip().to_canonical().is_loopback();
    if is_here && socket.tcp_congestion()?.starts_with(PACED) {
        socket.set_tcp_congestion(UNPACED)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// The congestion control of a socket that had `before`, after [`spare`] was told that it comes from `peer`; `None` on a
    /// system that has no `before`.
    fn spared(before: &[u8], peer: Option<SocketAddr>) -> Option<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let local = listener.local_addr().expect("an address");
        let _client = TcpStream::connect(local).expect("a client");
        let (stream, real) = listener.accept().expect("a connection");
        SockRef::from(&stream).set_tcp_congestion(before).ok()?;
        spare(SockRef::from(&stream), local, peer.unwrap_or(real)).expect("cubic can be set");
        let name = SockRef::from(&stream).tcp_congestion().expect("a name");
        Some(name.split(|byte| *byte == 0).next()?.to_vec())
    }

    #[test]
    fn a_client_on_this_machine_is_not_paced() {
        assert!(matches!(
            spared(b"bbr", None).as_deref(),
            None | Some(b"cubic")
        ));
    }

    #[test]
    fn what_does_not_pace_stays() {
        assert!(matches!(
            spared(b"reno", None).as_deref(),
            None | Some(b"reno")
        ));
    }

    #[test]
    fn a_client_elsewhere_is_left_as_it_is() {
        let elsewhere = "192.0.2.1:4000".parse().expect("an address");
        assert!(matches!(
            spared(b"bbr", Some(elsewhere)).as_deref(),
            None | Some(b"bbr")
        ));
    }
}
