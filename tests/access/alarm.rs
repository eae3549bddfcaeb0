//! Heartbeats of a connection that is not read.

use stratamq::amqp::frame::FrameKind;

use super::broker;
use super::support::raw::{Client, Login, Message, transient};

/// CN-48, CN-50, AL-6: a publisher that is blocked by an alarm is not read, so its silence is not held against it, and the heartbeats
/// that it needs to hold on go on.
#[test]
fn a_blocked_publisher_is_not_dropped_for_its_silence() {
    let broker = broker(&["--disk-free-limit", "1000000GiB"]);
    let login = Login {
        heartbeat_secs: 1,
        ..Login::default()
    };
    let mut c = Client::login(broker.address(), &login);
    c.open_channel(1);
    c.queue_declare(1, "q", transient());
    c.push_publish(1, "", "q", &Message::plain("m"));
    c.flush().expect("sent");
    // Two a second: ten of them are longer than the three seconds after which silence would have ended it.
    let mut beats = 0;
    while beats < 10 {
        let frame = c.try_next_frame().expect("the connection lives");
        beats += u32::from(frame.kind == FrameKind::Heartbeat);
    }
}
