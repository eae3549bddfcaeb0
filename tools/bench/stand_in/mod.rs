//! What a broker cannot beat: a process that only moves the same bytes through the same sockets.
//!
//! ```text
//!  publisher --basic.publish--> | reader of this connection: hops from frame to frame, counts messages |
//!            <--basic.ack------ |   one ack a read                                                      |
//!                               |   writes as many deliveries, made before, into the consumers' sockets | --> consumer
//!  consumer  --basic.ack------> | reader of that connection: forgets them                               |
//! ```
//! It speaks as much AMQP as the generator asks for before a run, so that the generator is the same in both. It keeps nothing:
//! no message is looked at, routed, stored or handed to another thread, and the bytes of a delivery are those that a broker would
//! send for the first message it saw. A confirm is sent at once, so what a disk costs is not in it (`raw::CommitLoop` measures that).
//!
//! As a relay it copies bytes between two connections: the bare echo through one hop.
//!
//! It is `strata-bench` itself, started again with a hidden command; it ends when its standard input does.

mod deliveries;
mod desk;
mod talk;

use crate::args::Args;
use crate::error::BenchError;
use crate::url::Url;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use desk::Desk;
use socket2::SockRef;
use stratamq::server::pacing;

/// Bytes that a relay reads at once.
const RELAY_BYTES: usize = 64 * 1024;

/// How the process is started.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StandInArgs {
    /// Subscriptions to wait for before the first delivery is written.
    #[arg(long, default_value_t = 0)]
    subscriptions: usize,
    /// Copy bytes between two connections, and nothing else.
    #[arg(long)]
    relay: bool,
}

/// Serves until standard input ends.
pub(crate) fn serve(args: &StandInArgs) -> Result<(), BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = listener.map_err(BenchError::io("opening the stand-in's port"))?;
    let port = listener.local_addr().map(|address| address.port());
    let port = port.map_err(BenchError::io("asking for the stand-in's port"))?;
    println!("{port}");
    let args = args.clone();
    thread::spawn(move || match args.relay {
        true => relay(&listener),
        false => serve_brokerless(&listener, &Arc::new(Desk::new(args.subscriptions))),
    });
    // Nothing is ever written there: it ends with whoever started this.
    io::copy(&mut io::stdin(), &mut io::sink()).map_err(BenchError::io("waiting for the end"))?;
    Ok(())
}

fn serve_brokerless(listener: &TcpListener, desk: &Arc<Desk>) {
    for stream in listener.incoming().flatten() {
        let desk = Arc::clone(desk);
        // A connection that ends, for whatever reason, ends its thread; the generator sees it.
        thread::spawn(move || talk::serve(stream, &desk));
    }
}

/// Sets a socket's options as the broker does.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    pacing::spare(SockRef::from(stream), local, peer)
}

fn relay(listener: &TcpListener) {
    let pair: Vec<TcpStream> = listener.incoming().flatten().take(2).collect();
    let [left, right] = pair.as_slice() else {
        return;
    };
    thread::scope(|scope| {
        scope.spawn(|| pump(left, right));
        pump(right, left);
    });
}

fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; RELAY_BYTES];
    // The other side would wait for ever.
    let _ = set_up(to);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let part = buffer.get(..count).unwrap_or_default();
        if to.write_all(part).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// A stand-in that runs.
pub(crate) struct StandIn {
    child: Child,
    port: u16,
}

impl StandIn {
    /// One for the load that `args` describes.
    pub(crate) fn for_load(args: &Args) -> Result<Self, BenchError> {
        let consumers = 0..args.consumers;
        let count: usize = consumers.map(|index| args.queues_of(index).len()).sum();
        Self::start(&["--subscriptions", &count.to_string()])
    }

    /// One that copies bytes between two connections.
    pub(crate) fn relay() -> Result<Self, BenchError> {
        Self::start(&["--relay"])
    }

    fn start(flags: &[&str]) -> Result<Self, BenchError> {
        let what = "starting the stand-in";
        let program = std::env::current_exe().map_err(BenchError::io(what))?;
        let mut child = Command::new(program)
            .arg("stand-in")
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::io(what))?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            let read = BufReader::new(output).read_line(&mut line);
            read.map_err(BenchError::io(what))?;
        }
        match line.trim().parse() {
            Ok(port) => Ok(Self { child, port }),
            Err(_) => Err(BenchError::Protocol(
                "the stand-in names no port".to_owned(),
            )),
        }
    }

    pub(crate) fn url(&self) -> Url {
        let address = format!("amqp://127.0.0.1:{}", self.port);
        address.parse().expect("the address is well-formed")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A bare connection.
    pub(crate) fn connect(&self) -> Result<TcpStream, BenchError> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        stream.map_err(BenchError::io("connecting to the stand-in"))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
