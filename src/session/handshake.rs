//! From the protocol header to `connection.open-ok`.
//!
//! ```text
//!  AwaitHeader --AMQP 0 0 9 1--> start --> AwaitStartOk --start-ok--> LoggingIn --login_result--> tune
//!  --> AwaitTuneOk --tune-ok--> AwaitOpen --open--> Opening --open_result--> open-ok --> Running
//! ```
//! While the server checks a password or opens a virtual host nothing is taken from the input, so a client
//! may send everything in one burst. A client that does anything else is left in silence for a while and
//! then disconnected: it learns nothing, and cannot try quickly again.

use bytes::{Buf, Bytes, BytesMut};

use super::close::{CloseReason, Failure};
use super::event::{Event, Login, LoginRefused, Mechanism, Proof};
use super::heartbeat::Heartbeat;
use super::sasl::Claim;
use super::{Phase, Session, SessionOptions, Work};
use crate::amqp::content::FrameSink;
use crate::amqp::field_table::FieldTable;
use crate::amqp::frame::{Frame, FrameKind};
use crate::amqp::limits::FRAME_MIN_SIZE;
use crate::amqp::method::{Method, MethodId, connection};
use crate::amqp::protocol_header::{Greeting, PROTOCOL_HEADER_BYTES};
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::broker::error::BrokerError;

/// All capabilities RabbitMQ has; clients refuse to use what is not offered.
const CAPABILITIES: [&str; 9] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];

/// Capabilities of the client that change what the server does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClientCapabilities {
    pub(super) hears_login_failure: bool,
    pub(super) hears_consumer_cancel: bool,
    pub(super) hears_blocked: bool,
}

impl ClientCapabilities {
    /// Only a bool that is true counts.
    fn of(client_properties: &FieldTable) -> Self {
        let has = |name: &str| {
            let capabilities = client_properties.get_table("capabilities");
            capabilities.and_then(|table| table.get_bool(name)) == Some(true)
        };
        Self {
            hears_login_failure: has("authentication_failure_close"),
            hears_consumer_cancel: has("consumer_cancel_notify"),
            hears_blocked: has("connection.blocked"),
        }
    }
}

fn server_properties(options: &SessionOptions) -> FieldTable {
    let capabilities = CAPABILITIES
        .into_iter()
        .fold(FieldTable::new(), |table, name| table.with(name, true));
    FieldTable::new()
        .with("capabilities", capabilities)
        .with("cluster_name", options.cluster_name.as_str())
        .with("copyright", options.copyright.as_str())
        .with("information", options.information.as_str())
        .with("platform", options.platform.as_str())
        .with("product", options.product.as_str())
        .with("version", options.version.as_str())
}

fn login(
    start_ok: &connection::StartOk,
    mechanism: Mechanism,
    user: String,
    proof: Proof,
) -> Login {
    let properties = &start_ok.client_properties;
    let client: Vec<&str> = ["product", "version", "platform"]
        .into_iter()
        .filter_map(|name| properties.get_text(name))
        .collect();
    Login {
        mechanism,
        user,
        proof,
        connection_name: properties.get_text("connection_name").map(str::to_owned),
        client: client.join(" "),
    }
}

impl Session {
    /// Takes the first eight bytes; false when they have not all arrived.
    pub(super) fn handle_protocol_header(&mut self, input: &mut BytesMut) -> bool {
        let Some(header) = input.first_chunk::<PROTOCOL_HEADER_BYTES>().copied() else {
            return false;
        };
        input.advance(PROTOCOL_HEADER_BYTES);
        match Greeting::of(header) {
            Greeting::Start => {
                self.send(
                    0,
                    connection::Start {
                        version_major: 0,
                        version_minor: 9,
                        server_properties: server_properties(&self.options),
                        mechanisms: Bytes::from(self.options.mechanisms.offer()),
                        locales: Bytes::from_static(b"en_US"),
                    },
                );
                self.phase = Phase::AwaitStartOk;
            }
            Greeting::Refuse { answer } => {
                self.output.buffer().extend_from_slice(&answer);
                self.phase = Phase::Finished;
            }
        }
        true
    }

    /// A frame before the connection is open.
    pub(super) fn handle_handshake_frame(&mut self, frame: &Frame) {
        let is_heartbeat = frame.kind == FrameKind::Heartbeat;
        if is_heartbeat && matches!(self.phase, Phase::AwaitOpen) {
            return;
        }
        let is_method = frame.kind == FrameKind::Method && frame.channel == 0;
        match Method::decode(&frame.payload) {
            Ok(method) if is_method => self.handle_handshake_method(method),
            _ => self.refuse("handshake refused: a frame out of order"),
        }
    }

    fn handle_handshake_method(&mut self, method: Method) {
        match (&self.phase, method) {
            (Phase::AwaitStartOk, Method::ConnectionStartOk(method)) => self.start_ok(&method),
            (Phase::AwaitTuneOk, Method::ConnectionTuneOk(method)) => self.tune_ok(&method),
            (Phase::AwaitOpen, Method::ConnectionOpen(method)) => {
                self.phase = Phase::Opening;
                let vhost = method.virtual_host.detached();
                self.work.push_back(Work::Event(Event::Open { vhost }));
            }
            (_, Method::ConnectionClose(_)) => {
                self.send(0, connection::CloseOk {});
                self.phase = Phase::Finished;
            }
            (_, method) => {
                let name = method.name();
                self.refuse(format!("handshake refused: {name} out of order"));
            }
        }
    }

    fn start_ok(&mut self, start_ok: &connection::StartOk) {
        self.client = ClientCapabilities::of(&start_ok.client_properties);
        let mechanisms = &self.options.mechanisms;
        let Some(mechanism) = mechanisms.find(start_ok.mechanism.as_str()) else {
            let name = start_ok.mechanism.as_str();
            let text = format!("login refused: there is no mechanism '{name}'");
            return self.refuse(text);
        };
        match mechanisms.claim(mechanism, &start_ok.response) {
            Claim::Malformed => {
                let name = mechanism.name();
                self.refuse(format!("login refused: {name} response malformed"));
            }
            Claim::Nobody => {
                self.complain("login refused: no client certificate that names a user");
                self.phase = Phase::LoggingIn(mechanism);
                self.login_result(Err(LoginRefused));
            }
            Claim::User(user, proof) => {
                let login = login(start_ok, mechanism, user, proof);
                self.phase = Phase::LoggingIn(mechanism);
                self.work.push_back(Work::Event(Event::Login(login)));
            }
        }
    }

    /// Answers [`Event::Login`].
    pub fn login_result(&mut self, result: Result<(), LoginRefused>) {
        let Phase::LoggingIn(mechanism) = self.phase else {
            return;
        };
        match result {
            Ok(()) => {
                self.send(
                    0,
                    connection::Tune {
                        channel_max: self.options.channel_max,
                        frame_max: self.options.frame_max_bytes,
                        heartbeat: self.options.heartbeat_secs,
                    },
                );
                self.phase = Phase::AwaitTuneOk;
            }
            Err(LoginRefused) => {
                if self.client.hears_login_failure {
                    let text = format!(
                        "Login was refused using authentication mechanism {}. \
                         For details see the broker logfile.",
                        mechanism.name()
                    );
                    self.send_close(ConnectionReplyCode::AccessRefused, text, MethodId::NONE);
                }
                self.linger();
            }
        }
    }

    fn tune_ok(&mut self, tune_ok: &connection::TuneOk) {
        if let Err(text) = check_tune_ok(&self.options, tune_ok) {
            self.complain(format!("handshake refused: {text}"));
            self.send_close(
                ConnectionReplyCode::NotAllowed,
                text,
                connection::TuneOk::ID,
            );
            return self.linger();
        }
        self.channel_max = tune_ok.channel_max;
        self.frame_max_bytes = tune_ok.frame_max;
        self.heartbeat = Heartbeat::new(tune_ok.heartbeat, self.now_ms);
        self.phase = Phase::AwaitOpen;
    }

    /// Answers [`Event::Open`].
    pub fn open_result(&mut self, result: Result<(), BrokerError>) {
        let Phase::Opening = self.phase else {
            return;
        };
        let Err(error) = result else {
            self.send(0, connection::OpenOk::default());
            self.phase = Phase::Running;
            return;
        };
        let id = connection::Open::ID;
        match Failure::broker(error, id) {
            Failure::Connection(CloseReason { code, text, method }) => {
                self.send_close(code, text, method);
            }
            Failure::Channel(reason) => {
                self.send_close(ConnectionReplyCode::NotAllowed, reason.text, id);
            }
        }
        self.await_close_ok();
    }

    fn send_close(&mut self, code: ConnectionReplyCode, text: String, method: MethodId) {
        self.send(0, CloseReason { code, text, method }.close());
    }
}

/// The client may lower what was offered, but not below AMQP's minimum, and not lift a limit.
fn check_tune_ok(options: &SessionOptions, tune_ok: &connection::TuneOk) -> Result<(), String> {
    let frame_max = tune_ok.frame_max;
    if frame_max == 0 || frame_max > options.frame_max_bytes {
        return Err(too_high("frame_max", frame_max, options.frame_max_bytes));
    }
    if frame_max < FRAME_MIN_SIZE {
        return Err(format!(
            "negotiated frame_max = {frame_max} is lower than the minimum allowed value ({FRAME_MIN_SIZE})"
        ));
    }
    let channel_max = tune_ok.channel_max;
    if channel_max == 0 || channel_max > options.channel_max {
        let (value, max) = (u32::from(channel_max), u32::from(options.channel_max));
        return Err(too_high("channel_max", value, max));
    }
    Ok(())
}

fn too_high(name: &str, value: u32, max: u32) -> String {
    format!("negotiated {name} = {value} is higher than the maximum allowed value ({max})")
}
