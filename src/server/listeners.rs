//! The sockets that clients connect to: AMQP in the clear, AMQP over TLS, or both.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::start::StartError;
use super::tls::Tls;
use crate::config::Config;

/// Connections waiting to be accepted, as RabbitMQ has it.
const LISTEN_BACKLOG: u32 = 128;

/// Sockets that have their ports and do not listen yet.
pub(super) struct Sockets {
    plain: Option<TcpSocket>,
    tls: Option<TcpSocket>,
}

impl Sockets {
    /// Takes the ports. To be called within the runtime.
    pub(super) fn bind(config: &Config) -> Result<Self, StartError> {
        let bind = |port: u16| {
            let address = SocketAddr::new(config.bind, port);
            bind(address)
                .map_err(|error| StartError::Failed(format!("cannot listen on {address}: {error}")))
        };
        let plain = config.amqp_port.number().map(bind).transpose()?;
        let tls = config.tls.as_ref().map(|tls| bind(tls.port)).transpose()?;
        Ok(Self { plain, tls })
    }

    /// Lets clients in. `tls` is there when its socket is.
    pub(super) fn listen(self, tls: Option<Arc<Tls>>) -> io::Result<Listeners> {
        let listen = |socket: TcpSocket| socket.listen(LISTEN_BACKLOG);
        Ok(Listeners {
            plain: self.plain.map(listen).transpose()?,
            tls: match (self.tls, tls) {
                (Some(socket), Some(tls)) => Some((listen(socket)?, tls)),
                _ => None,
            },
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// See the module.
pub(super) struct Listeners {
    plain: Option<TcpListener>,
    tls: Option<(TcpListener, Arc<Tls>)>,
}

/// A socket just accepted.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    /// How it is to be encrypted, if it is.
    pub(super) tls: Option<Arc<Tls>>,
}

impl Listeners {
    /// Waits for the next client. Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        let tls = self.tls.as_ref();
        let (accepted, tls) = tokio::select! {
            accepted = accept(self.plain.as_ref()) => (accepted, None),
            accepted = accept(tls.map(|(listener, _)| listener)) => {
                (accepted, tls.map(|(_, tls)| Arc::clone(tls)))
            }
        };
        let (stream, peer) = accepted?;
        Ok(Accepted { stream, peer, tls })
    }

    /// Each address, and what is to be said about it.
    pub(super) fn addresses(&self) -> io::Result<Vec<(SocketAddr, &'static str)>> {
        let plain = self.plain.iter().map(|listener| (listener, ""));
        let tls = self.tls.iter().map(|(listener, _)| (listener, " (TLS)"));
        plain
            .chain(tls)
            .map(|(listener, what)| Ok((listener.local_addr()?, what)))
            .collect()
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
