//! The admin socket: one JSON line in, one JSON line out, on a Unix socket in the data directory.
//!
//! Whoever may write to the data directory may administrate the broker: the socket is created with mode
//! 0600 and asks for no password. When no broker runs on the directory, [`run_command`] opens it, does the
//! same work on the same code, and closes it with a checkpoint.

mod entries;
mod request;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, RwLock};

use self::entries::body_response;
pub use self::entries::{
    LimitWire, PermissionEntry, PolicyWire, TopicPermissionWire, UserEntry, VhostWire,
};
pub use self::request::Request;
use super::hub::Hub;
use super::start::{self, StartError};
use crate::broker::admin::{AdminCommand, AdminError, AdminReply};
use crate::broker::effects::Effects;
use crate::config::Config;
use crate::storage::types::Lsn;

/// Name of the socket in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// Longest request line; bounds what an unruly client makes us hold.
const REQUEST_MAX_BYTES: u64 = 64 * 1024;
/// A request must come, what it did become durable, and an answer be taken, within this each.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer is waited for: some work takes its time, but a broker that hangs must not hang its operator.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Paths of Unix sockets are at most this long (`sun_path` less its terminator).
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// An answer on the socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// What was asked for; `null` when there is nothing to tell.
    Ok(serde_json::Value),
    /// One line that says why not.
    Error(String),
}

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminClientError {
    /// `status` without a running broker.
    #[error("no broker runs on data directory {0}")]
    NotRunning(String),
    /// The broker refused.
    #[error("{0}")]
    Refused(String),
    /// The socket failed.
    #[error("cannot talk to the broker on data directory {directory}: {error}")]
    Io {
        /// The directory.
        directory: String,
        /// What failed.
        error: io::Error,
    },
    /// The stopped directory could not be opened.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Held for reading by every request that is being carried out. Who holds it for writing has waited for all of them, and no other
/// begins.
pub(super) type Gate = Arc<RwLock<()>>;

/// Opens the admin socket and serves it until the task is aborted; requests under way go on, see [`Gate`].
pub(super) fn listen(
    data_dir: &Path,
    hub: Arc<Hub>,
    gate: Gate,
) -> io::Result<tokio::task::JoinHandle<()>> {
    let path = data_dir.join(SOCKET_NAME);
    // We hold the directory's lock, so a socket that is there is a dead broker's.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_directory, short_path) = short_socket_path(&path)?;
    let listener = UnixListener::bind(&short_path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (hub, gate) = (Arc::clone(&hub), Arc::clone(&gate));
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &hub, gate).await {
                            tracing::info!(%error, "an admin client got no answer");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin client");
                    tokio::time::sleep(super::ACCEPT_PAUSE).await;
                }
            }
        }
    }))
}

/// A path that fits into a socket address: long ones go through the directory's descriptor, which is
/// returned so that it lives as long as the path is used.
fn short_socket_path(path: &Path) -> io::Result<(Option<std::fs::File>, PathBuf)> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        return Ok((None, path.to_owned()));
    }
    let directory = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    let short = PathBuf::from(format!(
        "/proc/self/fd/{}/{SOCKET_NAME}",
        directory.as_raw_fd()
    ));
    Ok((Some(directory), short))
}

/// A step that must not take longer than [`CLIENT_TIMEOUT`].
async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CLIENT_TIMEOUT, step).await?
}

async fn answer(stream: UnixStream, hub: &Arc<Hub>, gate: Gate) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(REQUEST_MAX_BYTES));
    let mut line = String::new();
    in_time(read.read_line(&mut line)).await?;
    let response = match serde_json::from_str::<Request>(&line) {
        Ok(request) => respond(request, hub, gate).await?,
        Err(error) => Response::Error(format!("bad request: {error}")),
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    in_time(async {
        write.write_all(&text).await?;
        write.shutdown().await
    })
    .await
}

/// Carries a request out where it may take long (a list of all queues, the end of a vhost) without keeping clients waiting,
/// and waits until what it did is durable.
async fn respond(request: Request, hub: &Arc<Hub>, gate: Gate) -> io::Result<Response> {
    let Ok(turn) = gate.try_read_owned() else {
        return Ok(Response::Error("the broker is stopping".into()));
    };
    let own_hub = Arc::clone(hub);
    let acted = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        act(request, &own_hub)
    });
    let (response, durable_at) = acted.await.map_err(io::Error::other)?;
    if let Some(lsn) = durable_at {
        // On a full disk that may never be.
        in_time(wait_until_durable(lsn, hub)).await?;
    }
    Ok(response)
}

async fn wait_until_durable(lsn: Lsn, hub: &Hub) -> io::Result<()> {
    let notify = Arc::new(Notify::new());
    hub.signals.wake_at(lsn, &notify);
    // Registered first, looked afterwards: see `Signals`.
    while hub.storage.confirm_lsn() < lsn {
        notify.notified().await;
    }
    Ok(())
}

/// The answer to a request, and what has to be durable before it is given.
fn act(request: Request, hub: &Hub) -> (Response, Option<Lsn>) {
    let response = match request {
        Request::Status => match super::status::collect(hub) {
            Ok(status) => to_response(&status),
            Err(error) => Response::Error(error.to_string()),
        },
        Request::ListConnections => to_response(&hub.clients.list()),
        Request::CloseConnection { id, reason } => match hub.clients.close(id, &reason) {
            true => Response::Ok(serde_json::Value::Null),
            false => Response::Error(format!("there is no connection {id}")),
        },
        request => match request.into_command().map(|command| execute(command, hub)) {
            None => Response::Error("the domain has no such command".into()),
            Some(Ok(reply)) => return (body_response(&reply.body), reply.durable_at),
            Some(Err(error)) => Response::Error(error.to_string()),
        },
    };
    (response, None)
}

/// Gives a command to the domain and carries out what it hands back.
fn execute(command: AdminCommand, hub: &Hub) -> Result<AdminReply, AdminError> {
    let mut effects = Effects::default();
    let is_policy = matches!(
        command,
        AdminCommand::SetPolicy { .. } | AdminCommand::ClearPolicy { .. }
    );
    let result = hub.broker.admin(command, hub.now_ms(), &mut effects);
    hub.carry_out(&mut effects);
    if is_policy {
        // It may limit sizes that nobody wanted to know before.
        hub.measuring().request();
    }
    result
}

fn to_response<T: Serialize>(value: &T) -> Response {
    match serde_json::to_value(value) {
        Ok(value) => Response::Ok(value),
        Err(error) => Response::Error(format!("cannot encode the answer: {error}")),
    }
}

/// Carries `request` out on the running broker, or on the stopped data directory.
///
/// # Errors
/// When the broker refuses, or neither can be reached.
pub fn run_command(
    config: &Config,
    request: Request,
) -> Result<serde_json::Value, AdminClientError> {
    let directory = config.data_dir.display().to_string();
    let response = match ask_running(&config.data_dir, &request) {
        Ok(response) => response,
        Err(error) if is_nobody_there(&error) => match request {
            Request::Status | Request::ListConnections | Request::CloseConnection { .. } => {
                return Err(AdminClientError::NotRunning(directory));
            }
            request => on_stopped(config, request)?,
        },
        Err(error) => return Err(AdminClientError::Io { directory, error }),
    };
    match response {
        Response::Ok(value) => Ok(value),
        Response::Error(text) => Err(AdminClientError::Refused(text)),
    }
}

fn is_nobody_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn ask_running(data_dir: &Path, request: &Request) -> io::Result<Response> {
    use std::io::{BufRead, Write};
    let (_directory, path) = short_socket_path(&data_dir.join(SOCKET_NAME))?;
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    io::BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::from)
}

/// Opens the directory as a start would, without listening, and stops cleanly.
fn on_stopped(config: &Config, request: Request) -> Result<Response, AdminClientError> {
    let hub = start::start(config)?;
    let response = match request.into_command() {
        None => Response::Error("a stopped broker has no status".into()),
        Some(command) => match execute(command, &hub) {
            Ok(reply) => body_response(&reply.body),
            Err(error) => Response::Error(error.to_string()),
        },
    };
    hub.broker.stop();
    hub.storage
        .close(&hub.broker)
        .map_err(StartError::Storage)?;
    Ok(response)
}
