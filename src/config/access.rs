//! Who may connect, how, and how much one client may take: the flags, and what they mean.
//!
//! Defaults are RabbitMQ's, with one exception: `ANONYMOUS`, which lets anybody in, is off.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{ByteSize, ConfigError, Port, check_range};

/// Flags about logins and the limits of connections.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connections")]
pub struct AccessArgs {
    /// How clients may log in, of PLAIN, AMQPLAIN, ANONYMOUS (anybody, as --anonymous-user) and EXTERNAL (by a client
    /// certificate, with TLS only)
    #[arg(
        long,
        env = "STRATAMQ_AUTH_MECHANISMS",
        default_value = "PLAIN,AMQPLAIN",
        value_name = "LIST",
        value_delimiter = ',',
        ignore_case = true
    )]
    pub auth_mechanisms: Vec<MechanismArg>,

    /// The user that ANONYMOUS logs in as
    #[arg(
        long,
        env = "STRATAMQ_ANONYMOUS_USER",
        default_value = "guest",
        value_name = "NAME"
    )]
    pub anonymous_user: String,

    /// Users that may log in from this machine only; empty for none
    #[arg(
        long,
        env = "STRATAMQ_LOOPBACK_USERS",
        default_value = "guest",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub loopback_users: Vec<String>,

    /// Milliseconds that the socket of a refused login stays open, against the guessing of passwords
    #[arg(
        long,
        env = "STRATAMQ_LOGIN_DELAY_MS",
        default_value_t = 3000,
        value_name = "MS"
    )]
    pub login_delay_ms: u64,

    /// Milliseconds a client has from its connect (or the end of the TLS handshake) to `connection.open`
    #[arg(
        long,
        env = "STRATAMQ_HANDSHAKE_TIMEOUT_MS",
        default_value_t = 10_000,
        value_name = "MS"
    )]
    pub handshake_timeout_ms: u64,

    /// Milliseconds to wait for a client's answer to `connection.close`; a shorter heartbeat counts instead
    #[arg(
        long,
        env = "STRATAMQ_CLOSE_TIMEOUT_MS",
        default_value_t = 30_000,
        value_name = "MS"
    )]
    pub close_timeout_ms: u64,

    /// Seconds between heartbeats, as offered to clients, which decide; 0 for off
    #[arg(
        long,
        env = "STRATAMQ_HEARTBEAT",
        default_value_t = 60,
        value_name = "SECONDS"
    )]
    pub heartbeat: u16,

    /// Channels that one connection may have open
    #[arg(
        long,
        env = "STRATAMQ_CHANNEL_MAX",
        default_value_t = 2047,
        value_name = "N"
    )]
    pub channel_max: u16,

    /// Largest frame, 8KiB to 16MiB; clients may ask for less, down to 4KiB
    #[arg(
        long,
        env = "STRATAMQ_FRAME_MAX",
        default_value = "128KiB",
        value_name = "SIZE"
    )]
    pub frame_max: ByteSize,

    /// Largest message body, up to 256MiB and a quarter of --segment-size
    #[arg(
        long,
        env = "STRATAMQ_MAX_MESSAGE_SIZE",
        default_value = "16MiB",
        value_name = "SIZE"
    )]
    pub max_message_size: ByteSize,

    /// Connections that may be open; 0 for any number
    #[arg(
        long,
        env = "STRATAMQ_MAX_CONNECTIONS",
        default_value_t = 0,
        value_name = "N"
    )]
    pub max_connections: u64,

    /// Channels that all connections together may have open; 0 for any number
    #[arg(
        long,
        env = "STRATAMQ_MAX_CHANNELS",
        default_value_t = 0,
        value_name = "N"
    )]
    pub max_channels: u64,

    /// Consumers that one channel may have; 0 for any number
    #[arg(
        long,
        env = "STRATAMQ_MAX_CONSUMERS_PER_CHANNEL",
        default_value_t = 0,
        value_name = "N"
    )]
    pub max_consumers_per_channel: u64,

    /// Virtual hosts there may be; 0 for any number
    #[arg(
        long,
        env = "STRATAMQ_MAX_VHOSTS",
        default_value_t = 0,
        value_name = "N"
    )]
    pub max_vhosts: u64,

    /// Queues that all virtual hosts together may have; 0 for any number
    #[arg(
        long,
        env = "STRATAMQ_MAX_QUEUES",
        default_value_t = 0,
        value_name = "N"
    )]
    pub max_queues: u64,

    /// Exchanges that all virtual hosts together may have, seven predeclared ones in each; 0 for any number
    #[arg(
        long,
        env = "STRATAMQ_MAX_EXCHANGES",
        default_value_t = 0,
        value_name = "N"
    )]
    pub max_exchanges: u64,

    /// Milliseconds that a consumer may hold a delivery; then its channel is closed, or it is cancelled if it takes from a
    /// quorum queue. 0 for any time
    #[arg(
        long,
        env = "STRATAMQ_CONSUMER_TIMEOUT_MS",
        default_value_t = 0,
        value_name = "MS"
    )]
    pub consumer_timeout_ms: u64,

    /// Prefetch of consumers on channels that have not asked for any; 0 for no limit
    #[arg(
        long,
        env = "STRATAMQ_DEFAULT_PREFETCH",
        default_value_t = 0,
        value_name = "N"
    )]
    pub default_prefetch: u16,

    /// What clients are told as the product; some change what they do for other products than RabbitMQ
    #[arg(
        long,
        env = "STRATAMQ_PRODUCT",
        default_value = "RabbitMQ",
        value_name = "NAME"
    )]
    pub product: String,

    /// What clients are told as the version: that of the RabbitMQ whose behaviour is offered
    #[arg(
        long,
        env = "STRATAMQ_PRODUCT_VERSION",
        default_value = "4.3.0",
        value_name = "VERSION"
    )]
    pub product_version: String,
}

/// Flags of the TLS listener.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Port for AMQP over TLS (usually 5671), or `off`
    #[arg(
        long,
        env = "STRATAMQ_TLS_PORT",
        default_value = "off",
        value_name = "PORT"
    )]
    pub tls_port: Port,

    /// The broker's certificate and those between it and the root, PEM; read again on SIGHUP
    #[arg(long, env = "STRATAMQ_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The key of the certificate, PEM; read again on SIGHUP
    #[arg(long, env = "STRATAMQ_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authorities that sign client certificates, PEM; read again on SIGHUP
    #[arg(long, env = "STRATAMQ_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Client certificates: `none` are asked for, `optional` ones must be valid, or everybody is `require`d to have one
    #[arg(
        long,
        env = "STRATAMQ_TLS_VERIFY",
        default_value = "none",
        value_name = "MODE"
    )]
    pub tls_verify: VerifyArg,

    /// Oldest version of TLS that is spoken
    #[arg(
        long,
        env = "STRATAMQ_TLS_MIN_VERSION",
        default_value = "1.2",
        value_name = "VERSION"
    )]
    pub tls_min_version: TlsVersionArg,

    /// The user's name in a client certificate, for EXTERNAL: the subject's `cn`, its whole `dn`, or the first
    /// `san-dns` or `san-email` of the alternative names
    #[arg(
        long,
        env = "STRATAMQ_TLS_LOGIN_FROM",
        default_value = "cn",
        value_name = "WHAT"
    )]
    pub tls_login_from: LoginFromArg,

    /// Milliseconds a client has for the TLS handshake
    #[arg(
        long,
        env = "STRATAMQ_TLS_HANDSHAKE_TIMEOUT_MS",
        default_value_t = 5000,
        value_name = "MS"
    )]
    pub tls_handshake_timeout_ms: u64,
}

/// Values of `--auth-mechanisms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MechanismArg {
    /// User and password.
    #[value(name = "PLAIN")]
    Plain,
    /// User and password in a table.
    #[value(name = "AMQPLAIN")]
    AmqPlain,
    /// Anybody.
    #[value(name = "ANONYMOUS")]
    Anonymous,
    /// The owner of a client certificate.
    #[value(name = "EXTERNAL")]
    External,
}

/// Values of `--tls-verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerifyArg {
    /// Client certificates are not asked for.
    None,
    /// A client may have one.
    Optional,
    /// Nobody connects without one.
    Require,
}

/// Values of `--tls-min-version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsVersionArg {
    /// TLS 1.2.
    #[value(name = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[value(name = "1.3")]
    V1_3,
}

/// Values of `--tls-login-from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoginFromArg {
    /// The common name of the subject.
    Cn,
    /// The subject as RFC 4514 writes it.
    Dn,
    /// The first DNS name.
    SanDns,
    /// The first mail address.
    SanEmail,
}

/// Logins and limits, validated.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// What clients may log in by.
    pub mechanisms: Vec<MechanismArg>,
    /// The user of `ANONYMOUS`.
    pub anonymous_user: String,
    /// Users that may log in from this machine only.
    pub loopback_users: Vec<String>,
    /// How long the socket of a refused login stays open.
    pub login_delay_ms: u64,
    /// From connect to open.
    pub handshake_timeout_ms: u64,
    /// From close to close-ok.
    pub close_timeout_ms: u64,
    /// Offered to clients; 0 for off.
    pub heartbeat_secs: u16,
    /// Channels of one connection; at least 1.
    pub channel_max: u16,
    /// Largest frame.
    pub frame_max_bytes: u32,
    /// Largest body.
    pub message_max_bytes: u64,
    /// Open connections; `None` for any number.
    pub connections_max: Option<u64>,
    /// Open channels of all connections; `None` for any number.
    pub channels_max: Option<u64>,
    /// Consumers of one channel; `None` for any number.
    pub channel_consumers_max: Option<u64>,
    /// Vhosts; `None` for any number.
    pub vhosts_max: Option<u64>,
    /// Queues of all vhosts; `None` for any number.
    pub queues_max: Option<u64>,
    /// Exchanges of all vhosts; `None` for any number.
    pub exchanges_max: Option<u64>,
    /// How long a consumer may hold a delivery; 0 for any time.
    pub consumer_timeout_ms: u64,
    /// Prefetch of consumers on channels that have not asked for any.
    pub default_prefetch: u16,
    /// `product` of the server properties.
    pub product: String,
    /// `version` of the server properties.
    pub product_version: String,
}

/// The TLS listener, validated; its files are not read yet.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Where it listens.
    pub port: u16,
    /// The broker's certificates.
    pub cert: PathBuf,
    /// The key of the first of them.
    pub key: PathBuf,
    /// Who signs client certificates; there when `verify` asks for them.
    pub ca: Option<PathBuf>,
    /// Whether clients show certificates.
    pub verify: VerifyArg,
    /// Oldest version.
    pub min_version: TlsVersionArg,
    /// Where the user's name stands in a client certificate.
    pub login_from: LoginFromArg,
    /// How long a handshake may take.
    pub handshake_timeout_ms: u64,
}

/// Longest time-out: an hour is for ever.
const TIMEOUT_MAX_MS: u64 = 3_600_000;
/// A frame may be that large: it has to be in memory as a whole.
const FRAME_MAX_MAX_BYTES: u64 = 16 << 20;
/// The least offer: clients that know nothing of `--frame-max` start with this.
const FRAME_MAX_MIN_BYTES: u64 = 8192;
/// A quarter of the largest segment.
const MESSAGE_MAX_MAX_BYTES: u64 = 256 << 20;
/// `--max-message-size` by default.
const MESSAGE_MAX_DEFAULT_BYTES: u64 = 16 << 20;

/// A limit of which 0 is none.
fn limit(value: u64) -> Option<u64> {
    (value > 0).then_some(value)
}

fn texts(list: &[String]) -> Vec<String> {
    let texts = list.iter().map(|text| text.trim());
    let texts = texts.filter(|text| !text.is_empty());
    texts.map(str::to_owned).collect()
}

impl AccessConfig {
    /// Checks each flag by itself.
    pub(super) fn from_args(args: &AccessArgs) -> Result<Self, ConfigError> {
        check_range(
            "--login-delay-ms",
            args.login_delay_ms,
            0,
            60_000,
            "0 to 60000",
        )?;
        for (flag, value) in [
            ("--handshake-timeout-ms", args.handshake_timeout_ms),
            ("--close-timeout-ms", args.close_timeout_ms),
        ] {
            check_range(flag, value, 1, TIMEOUT_MAX_MS, "1 to 3600000")?;
        }
        check_range(
            "--channel-max",
            args.channel_max.into(),
            1,
            65_535,
            "1 to 65535",
        )?;
        check_range(
            "--frame-max",
            args.frame_max.0,
            FRAME_MAX_MIN_BYTES,
            FRAME_MAX_MAX_BYTES,
            "8KiB to 16MiB",
        )?;
        check_range(
            "--max-message-size",
            args.max_message_size.0,
            1,
            MESSAGE_MAX_MAX_BYTES,
            "1 to 256MiB",
        )?;
        let frame_max_bytes = u32::try_from(args.frame_max.0).expect("checked against 16 MiB");
        Ok(Self {
            mechanisms: args.auth_mechanisms.clone(),
            anonymous_user: args.anonymous_user.clone(),
            loopback_users: texts(&args.loopback_users),
            login_delay_ms: args.login_delay_ms,
            handshake_timeout_ms: args.handshake_timeout_ms,
            close_timeout_ms: args.close_timeout_ms,
            heartbeat_secs: args.heartbeat,
            channel_max: args.channel_max,
            frame_max_bytes,
            message_max_bytes: args.max_message_size.0,
            connections_max: limit(args.max_connections),
            channels_max: limit(args.max_channels),
            channel_consumers_max: limit(args.max_consumers_per_channel),
            vhosts_max: limit(args.max_vhosts),
            queues_max: limit(args.max_queues),
            exchanges_max: limit(args.max_exchanges),
            consumer_timeout_ms: args.consumer_timeout_ms,
            default_prefetch: args.default_prefetch,
            product: args.product.clone(),
            product_version: args.product_version.clone(),
        })
    }

    /// Checks what depends on other flags.
    pub(super) fn check_with_segments(&self, segment_size_bytes: u64) -> Result<(), ConfigError> {
        let max_bytes = segment_size_bytes / 4;
        // The default fits into what there is; what somebody asked for is not cut.
        if self.message_max_bytes > max_bytes.max(MESSAGE_MAX_DEFAULT_BYTES) {
            return Err(ConfigError(format!(
                "invalid value '{}' for --max-message-size: a message is at most a quarter of --segment-size, {}",
                ByteSize(self.message_max_bytes),
                ByteSize(max_bytes)
            )));
        }
        Ok(())
    }
}

impl AccessConfig {
    /// EXTERNAL without certificates would lock everybody out and say nothing.
    pub(super) fn check_with_tls(&self, tls: Option<&TlsConfig>) -> Result<(), ConfigError> {
        let is_wanted = self.mechanisms.contains(&MechanismArg::External);
        if is_wanted && tls.is_none_or(|tls| tls.verify == VerifyArg::None) {
            let text = "EXTERNAL in --auth-mechanisms needs --tls-port, and --tls-verify optional or require";
            return Err(ConfigError(text.to_owned()));
        }
        Ok(())
    }
}

impl TlsArgs {
    /// Checks each flag by itself.
    pub(super) fn check_each(&self) -> Result<(), ConfigError> {
        check_range(
            "--tls-handshake-timeout-ms",
            self.tls_handshake_timeout_ms,
            1,
            TIMEOUT_MAX_MS,
            "1 to 3600000",
        )
    }

    /// What the flags mean together; `None` without a TLS listener.
    pub(super) fn listener(&self) -> Result<Option<TlsConfig>, ConfigError> {
        let Some(port) = self.tls_port.number() else {
            return Ok(None);
        };
        let missing = |flag: &str, why: &str| ConfigError(format!("{flag} is missing: {why}"));
        let needed = "--tls-port needs it";
        let cert = self.tls_cert.clone();
        let key = self.tls_key.clone();
        if self.tls_verify != VerifyArg::None && self.tls_ca.is_none() {
            return Err(missing(
                "--tls-ca",
                "--tls-verify optional and require need it",
            ));
        }
        Ok(Some(TlsConfig {
            port,
            cert: cert.ok_or_else(|| missing("--tls-cert", needed))?,
            key: key.ok_or_else(|| missing("--tls-key", needed))?,
            ca: self.tls_ca.clone(),
            verify: self.tls_verify,
            min_version: self.tls_min_version,
            login_from: self.tls_login_from,
            handshake_timeout_ms: self.tls_handshake_timeout_ms,
        }))
    }
}
