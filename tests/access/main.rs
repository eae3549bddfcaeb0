//! Who may connect and how much one client may take, on brokers with flags of their own: what the conformance suite cannot ask of
//! its one broker.

mod alarm;
mod authorities;
mod clients;
mod config_file;
mod limits;
mod logins;
mod pika;
mod rules;
mod tls;

#[path = "../support/mod.rs"]
mod support;

use std::process::{Command, Stdio};

use support::TestBroker;
use support::raw::{Client, Login, Outcome, Trouble};

/// A broker with these flags, started.
#[track_caller]
fn broker(flags: &[&str]) -> TestBroker {
    let builder = TestBroker::builder();
    flags
        .iter()
        .fold(builder, |builder, flag| builder.arg(flag))
        .start()
}

/// Runs `stratamq WORDS` on the running broker.
#[track_caller]
fn cli(broker: &TestBroker, words: &[&str]) -> String {
    let output = Command::new(broker.binary())
        .args(words)
        .env("STRATAMQ_DATA_DIR", broker.data_dir())
        .stdin(Stdio::null())
        .output()
        .expect("the broker's binary can be executed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}{complained}");
    said
}

/// The login was answered with `connection.close`: code and text.
#[track_caller]
fn refusal(outcome: Outcome<Client>) -> (u16, String) {
    match outcome {
        Err(Trouble::ConnectionClosed(close)) => (close.reply_code, close.reply_text.to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the login should be refused"),
    }
}

/// Somebody who is not guest, by password.
fn login(user: &str, password: &str) -> Login {
    Login {
        user: user.into(),
        password: password.into(),
        ..Login::default()
    }
}
