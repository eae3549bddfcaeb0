//! What ends a connection of the generator.

use std::io;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The system refused; the broker is down or went away.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The broker closed the connection or the channel.
    #[error("the broker closed the {scope}: {code} {text}")]
    Closed {
        /// `connection` or `channel`.
        scope: &'static str,
        /// Reply code.
        code: u16,
        /// Reply text.
        text: String,
    },
    /// The broker said something that has no place here.
    #[error("the broker broke the protocol: {0}")]
    Protocol(String),
    /// Nothing moved for as long as --patience allows.
    #[error("no progress for {secs} s while {doing}")]
    Stalled {
        /// What was awaited.
        doing: &'static str,
        /// For how long.
        secs: u64,
    },
}

impl BenchError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
