//! What a session asks its server to do.

use bytes::Bytes;

use crate::amqp::short_string::ShortString;
use crate::broker::command::{Command, Publish};

/// The next thing for the server to do, in order. Each variant names the call that answers it.
#[derive(Debug)]
pub enum Event {
    /// Check who a client says it is; answered by [`Session::login_result`](super::Session::login_result).
    Login(Login),
    /// Open a virtual host (`Broker::connect`); answered by
    /// [`Session::open_result`](super::Session::open_result).
    Open {
        /// Name of the virtual host.
        vhost: ShortString,
    },
    /// Execute a command; answered by [`Session::command_result`](super::Session::command_result),
    /// always, and before the next event is polled.
    Command {
        /// Channel it came on.
        channel: u16,
        /// The command.
        command: Command,
    },
    /// Publish a message. The server gathers consecutive ones and answers with
    /// [`Session::publish_results`](super::Session::publish_results), and
    /// [`Session::publish_refused`](super::Session::publish_refused) for one that the broker refuses.
    Publish(Publish),
    /// A publish inside a transaction: check it (exchange, permissions, properties) and find its queues
    /// now; the broker keeps it until the channel's commit or rollback (TX-3). Answered by
    /// [`Session::publish_refused`](super::Session::publish_refused) when the broker refuses it,
    /// else by nothing.
    TxPublish(Publish),
    /// The connection is over and its channels are closed: `Connection::close`. Answered by
    /// [`Session::ended`](super::Session::ended). Comes exactly once when a virtual host was opened.
    Ended,
}

/// Who wants in.
pub struct Login {
    /// What the client chose.
    pub mechanism: Mechanism,
    /// The user's name.
    pub user: String,
    /// Why it should be believed.
    pub proof: Proof,
    /// `connection_name` of the client's properties, for logs and status.
    pub connection_name: Option<String>,
    /// `product`, `version` and `platform` of the client's properties, joined by spaces.
    pub client: String,
}

impl std::fmt::Debug for Login {
    /// Leaves the password out: events are logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("mechanism", &self.mechanism)
            .field("user", &self.user)
            .field("connection_name", &self.connection_name)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// Why a client may be the user that it says.
pub enum Proof {
    /// The password, in clear.
    Password(Bytes),
    /// No password is needed: the mechanism has been enabled for this user, or TLS has verified a certificate.
    Vouched,
}

/// SASL mechanisms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// NUL user NUL password.
    Plain,
    /// A field table with `LOGIN` and `PASSWORD`.
    AmqPlain,
    /// Nothing: everybody is the same user.
    Anonymous,
    /// Nothing: the client's certificate says it.
    External,
}

impl Mechanism {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::AmqPlain => "AMQPLAIN",
            Self::Anonymous => "ANONYMOUS",
            Self::External => "EXTERNAL",
        }
    }
}

/// The login was refused. Carries no reason: the client must not learn which part was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRefused;
