//! A publish in the making: method, header, body frames.
//!
//! ```text
//!   Idle --publish--> AwaitHeader --header--> AwaitBody --body--> .. --body--> Idle
//!                                  \-- size 0 ------------------------------->/
//! ```
//! Bodies stay where they arrived: a part per frame. A body that is too large to be accepted is counted,
//! not kept, and refused when it is complete.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::close::Failure;
use crate::amqp::content::ContentHeader;
use crate::amqp::limits::CONTENT_MAX_BYTES;
use crate::amqp::method::{MethodId, basic};
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::amqp::short_string::ShortString;
use crate::broker::message::Message;

/// A part of several that is shorter than this is copied: it would keep a quarter of a read buffer and less of it alive, for as
/// long as the client likes.
const PART_KEPT_MIN_BYTES: usize = 32 * 1024;

/// Parts for which room is made at once; a client cannot ask for more by a large declared size.
const PARTS_MAX: usize = 16;

/// The arguments of a `basic.publish`.
#[derive(Debug)]
pub(super) struct PublishStart {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) is_mandatory: bool,
}

/// Content assembly of one channel.
#[derive(Debug, Default)]
pub(super) enum Content {
    /// No publish has begun.
    #[default]
    Idle,
    /// The method came, the header must follow.
    AwaitHeader(PublishStart),
    /// Body frames must follow.
    AwaitBody(Assembly),
}

/// A publish whose header is known.
#[derive(Debug)]
pub(super) struct Assembly {
    start: PublishStart,
    properties: Properties,
    size_bytes: u64,
    remaining_bytes: u64,
    body: SmallVec<[Bytes; 1]>,
}

/// A publish that is complete.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) is_mandatory: bool,
    pub(super) message: Arc<Message>,
}

impl Content {
    /// True while only content frames may come.
    pub(super) fn is_in_progress(&self) -> bool {
        !matches!(self, Self::Idle)
    }

    /// Bytes of the body that have arrived and are kept.
    pub(super) fn kept_bytes(&self) -> u64 {
        match self {
            Self::AwaitBody(assembly) => assembly.body.iter().map(|part| part.len() as u64).sum(),
            Self::Idle | Self::AwaitHeader(_) => 0,
        }
    }

    /// What is wrong with a frame of another kind now.
    pub(super) fn interrupted(&self) -> Failure {
        let (text, method) = match self {
            Self::Idle => (
                "expected method frame, got non method frame instead",
                MethodId::NONE,
            ),
            Self::AwaitHeader(_) => (
                "expected content header for class 60, got non content header frame instead",
                basic::Publish::ID,
            ),
            Self::AwaitBody(_) => (
                "expected content body, got non content body frame instead",
                basic::Publish::ID,
            ),
        };
        Failure::connection(ConnectionReplyCode::UnexpectedFrame, text, method)
    }

    /// A header frame arrived; `Some` when the body is empty.
    ///
    /// # Errors
    /// No header is expected, it is none of a message, or the declared size is out of all bounds.
    pub(super) fn handle_header(&mut self, payload: &Bytes) -> Result<Option<Assembled>, Failure> {
        let start = match std::mem::take(self) {
            Self::AwaitHeader(start) => start,
            other => return Err(other.interrupted()),
        };
        let header = ContentHeader::decode(payload).map_err(|error| {
            Failure::connection(error.reply_code(), error.to_string(), basic::Publish::ID)
        })?;
        let assembly = Assembly {
            start,
            properties: header.properties,
            size_bytes: header.body_size_bytes,
            remaining_bytes: header.body_size_bytes,
            body: SmallVec::new(),
        };
        // The size limit concerns bodies that arrive; an empty one is within every limit.
        self.advance(assembly, u64::MAX)
    }

    /// A body frame arrived; `Some` when it was the last one.
    ///
    /// # Errors
    /// No body is expected, it is longer than declared, or the whole body is longer than is accepted.
    pub(super) fn handle_body(
        &mut self,
        part: Bytes,
        message_max_bytes: u64,
    ) -> Result<Option<Assembled>, Failure> {
        let mut assembly = match std::mem::take(self) {
            Self::AwaitBody(assembly) => assembly,
            other => return Err(other.interrupted()),
        };
        assembly.remaining_bytes = assembly
            .remaining_bytes
            .checked_sub(part.len() as u64)
            .ok_or_else(|| {
                let text = "content body frame exceeds remaining content size";
                Failure::connection(ConnectionReplyCode::FrameError, text, basic::Publish::ID)
            })?;
        let is_kept = assembly.size_bytes <= message_max_bytes && !part.is_empty();
        if is_kept {
            if assembly.body.is_empty() {
                let more = assembly.remaining_bytes.div_ceil(part.len() as u64);
                let more = usize::try_from(more).unwrap_or(PARTS_MAX);
                assembly.body.reserve_exact(1 + more.min(PARTS_MAX));
            }
            // A body of one part is soon a message, which copies what is small.
            let is_whole = assembly.remaining_bytes == 0 && assembly.body.is_empty();
            if part.len() < PART_KEPT_MIN_BYTES && !is_whole {
                assembly.body.push(Bytes::copy_from_slice(&part));
            } else {
                assembly.body.push(part);
            }
        }
        self.advance(assembly, message_max_bytes)
    }

    fn advance(
        &mut self,
        assembly: Assembly,
        message_max_bytes: u64,
    ) -> Result<Option<Assembled>, Failure> {
        if assembly.remaining_bytes > 0 {
            *self = Self::AwaitBody(assembly);
            return Ok(None);
        }
        check_size(assembly.size_bytes, message_max_bytes)?;
        let Assembly {
            start,
            properties,
            body,
            ..
        } = assembly;
        Ok(Some(Assembled {
            is_mandatory: start.is_mandatory,
            message: Arc::new(Message::new(
                start.exchange,
                start.routing_key,
                properties,
                body,
            )),
        }))
    }
}

fn check_size(size_bytes: u64, max_bytes: u64) -> Result<(), Failure> {
    if size_bytes <= max_bytes {
        return Ok(());
    }
    let limit = match max_bytes {
        CONTENT_MAX_BYTES.. => "max size",
        _ => "configured max size",
    };
    let text = format!("message size {size_bytes} is larger than {limit} {max_bytes}");
    Err(Failure::channel(
        ChannelReplyCode::PreconditionFailed,
        text,
        basic::Publish::ID,
    ))
}
