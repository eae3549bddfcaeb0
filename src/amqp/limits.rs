//! Limits of the wire format, each with what it protects from.

/// Bytes of a frame around its payload: type, channel, size, end octet (AMQP 0-9-1 section 4.2.3).
pub const FRAME_OVERHEAD_BYTES: u32 = 8;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_BYTES: usize = 7;

/// `frame_max` before tune-ok, as in RabbitMQ 4.1 and later: a stranger may make us hold this much, and a
/// start-ok with a usual token fits.
pub const FRAME_MAX_BEFORE_TUNE: u32 = 8192;

/// The least `frame_max` a client may ask for; AMQP's own minimum, which old clients send.
pub const FRAME_MIN_SIZE: u32 = 4096;

/// `frame_max` offered by default: RabbitMQ's, which clients size their buffers by.
pub const FRAME_MAX_DEFAULT: u32 = 131_072;

/// Bytes a payload may exceed its official limit by, because clients are known to forget the overhead.
pub const FRAME_SLACK_BYTES: u32 = 8;

/// The largest body a content header may announce: what one message can make us collect at most, whatever
/// the configured message size. Also bounds the payload of a frame when `frame_max` is unlimited.
pub const CONTENT_MAX_BYTES: u64 = 512 * 1024 * 1024;

/// The largest message by default, RabbitMQ's since 4.0.
pub const MESSAGE_MAX_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// Bytes of a short string, since its length is one octet.
pub const SHORT_STRING_MAX_BYTES: usize = 255;

/// `channel_max` offered by default: each channel costs memory, and RabbitMQ's clients live with this many.
pub const CHANNEL_MAX_DEFAULT: u16 = 2047;

/// Body parts from this size on go to the socket from where they are; copying a smaller one is cheaper than
/// another entry in the vectored write.
pub const CHUNK_MIN_BYTES: usize = 4096;

const _: () = assert!(FRAME_MIN_SIZE <= FRAME_MAX_BEFORE_TUNE);
const _: () = assert!(FRAME_MAX_BEFORE_TUNE <= FRAME_MAX_DEFAULT);
const _: () = assert!(MESSAGE_MAX_BYTES_DEFAULT <= CONTENT_MAX_BYTES);
