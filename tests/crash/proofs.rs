//! Checks of a broker from outside that can be turned on any binary: the sound one must pass, the crippled ones must not.

use std::net::SocketAddr;
use std::time::Duration;

use super::syscalls::{
    Call, Change, Trace, check_confirms_follow_syncs, check_nothing_follows_a_failed_sync,
    check_segments_follow_syncs, check_superblocks_follow_checkpoints,
};
use crate::support::raw::{Client, Message, Trouble, durable, now};
use crate::support::{Builder, TestBroker};

const CHANNEL: u16 = 1;
const QUEUE: &str = "proof";
/// How long strace holds every fdatasync back.
const DELAY: Duration = Duration::from_millis(300);
/// The same where nothing is measured: time for other messages to come.
const SHORT_DELAY: Duration = Duration::from_millis(100);
/// Around copying into the batch, writing it as it is, and several frames.
const BODIES_BYTES: [usize; 6] = [0, 10, 4096, 5000, 131_072, 200_000];
/// The first sync of a thread that fails, counted from 1: late enough for the broker to start and to confirm some messages.
const FIRST_FAILING_SYNC: u32 = 12;
/// Connections that fill some segments of 1 MiB, and messages of 100 kB from each.
const FILLERS: usize = 8;
const FILLING: usize = 16;
/// A broker that has not ended after so many publishes does not care about its disk.
const PUBLISHES_MAX: usize = 100;

fn open(broker: &TestBroker) -> Client {
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    client.queue_declare(CHANNEL, QUEUE, durable());
    client.confirm_select(CHANNEL);
    client
}

fn body(number: usize, length: usize) -> Vec<u8> {
    let mut body = format!("message {number} ").into_bytes();
    body.resize(body.len().max(length), b'.');
    body
}

/// No confirm leaves before the log was written and synced after its publish.
pub(crate) fn confirms_follow_syncs(builder: Builder) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let trace = Trace::new(directory.path());
    let mut broker = builder.wrapper(&trace.wrapper("")).start();
    let mut client = open(&broker);
    for (number, length) in BODIES_BYTES.into_iter().enumerate() {
        client.publish(
            CHANNEL,
            "",
            QUEUE,
            &Message::persistent(body(number, length)),
        );
        client.wait_confirm(CHANNEL);
    }
    broker.kill();
    check_confirms_follow_syncs(&trace.calls(), BODIES_BYTES.len())
}

/// With every fdatasync delayed no confirm and no commit-ok comes earlier than that: one message at a time, and many under way.
pub(crate) fn confirms_take_as_long_as_the_sync(builder: Builder) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let trace = Trace::new(directory.path());
    let inject = format!("fdatasync:delay_exit={}", DELAY.as_micros());
    let broker = builder.wrapper(&trace.wrapper(&inject)).start();
    let mut client = open(&broker);
    for (number, length) in BODIES_BYTES.into_iter().enumerate() {
        let began = now();
        client.publish(
            CHANNEL,
            "",
            QUEUE,
            &Message::persistent(body(number, length)),
        );
        client.wait_confirm(CHANNEL);
        let took = now() - began;
        if took < DELAY {
            return Err(format!(
                "a confirm came after {took:?}, before any sync can have ended"
            ));
        }
    }
    many_under_way(&mut client)?;
    client.open_channel(CHANNEL + 1);
    client.tx_select(CHANNEL + 1);
    client.publish(
        CHANNEL + 1,
        "",
        QUEUE,
        &Message::persistent("in a transaction"),
    );
    let began = now();
    client.tx_commit(CHANNEL + 1);
    let took = now() - began;
    if took < DELAY {
        return Err(format!(
            "commit-ok came after {took:?}, before any sync can have ended"
        ));
    }
    Ok(())
}

/// Publishes at a steady pace, so that syncs end all the time, and looks at each confirm as it comes.
fn many_under_way(client: &mut Client) -> Result<(), String> {
    const PUBLISHES: usize = 40;
    const PACE: Duration = Duration::from_millis(20);
    let confirmed_before = u64::try_from(BODIES_BYTES.len()).unwrap_or(0);
    let mut sent_at = Vec::new();
    let mut confirmed = 0;
    while confirmed < PUBLISHES {
        if sent_at.len() < PUBLISHES {
            sent_at.push(now());
            let message = Message::persistent(body(sent_at.len(), 100));
            client.publish(CHANNEL, "", QUEUE, &message);
        }
        let limit = if sent_at.len() < PUBLISHES {
            PACE
        } else {
            crate::support::raw::READ_LIMIT
        };
        let ack = match client.try_next_confirm_within(CHANNEL, limit) {
            Ok(ack) => ack,
            Err(Trouble::Silent) if sent_at.len() < PUBLISHES => continue,
            Err(trouble) => return Err(trouble.to_string()),
        };
        // Acks may come singly; the newest publish of an ack is the one that can be early.
        let index = usize::try_from(ack.delivery_tag - confirmed_before - 1).unwrap_or(usize::MAX);
        let took = now() - sent_at[index];
        if took < DELAY {
            return Err(format!(
                "a confirm came after {took:?}, before any sync can have ended"
            ));
        }
        confirmed = if ack.multiple {
            index + 1
        } else {
            confirmed + 1
        };
    }
    Ok(())
}

/// When a sync fails the process ends, no confirm leaves, and what was confirmed before is there after a restart.
pub(crate) fn a_failed_sync_is_the_end(make: impl Fn() -> Builder) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let data_dir = directory.path().join("data");
    let trace = Trace::new(directory.path());
    let inject = format!("fdatasync:error=EIO:when={FIRST_FAILING_SYNC}+");
    let mut broker = make()
        .data_dir(&data_dir)
        .wrapper(&trace.wrapper(&inject))
        .start();
    let mut client = open(&broker);
    let mut confirmed = 0;
    loop {
        if confirmed == PUBLISHES_MAX {
            return Err(format!("{confirmed} messages confirmed while syncs fail"));
        }
        let message = Message::persistent(body(confirmed, 100));
        let outcome = client
            .try_publish(CHANNEL, "", QUEUE, &message)
            .and_then(|()| client.try_wait_confirm(CHANNEL));
        match outcome {
            Ok(_) => confirmed += 1,
            Err(Trouble::Gone(_)) => break,
            Err(trouble) => return Err(format!("instead of its end: {trouble}")),
        }
    }
    let status = broker.wait_for_exit();
    if status.success() {
        return Err("the process ended as if nothing had happened".into());
    }
    check_nothing_follows_a_failed_sync(&trace.calls())?;
    drop(broker);
    let broker = make().data_dir(&data_dir).start();
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    for number in 0..confirmed {
        let found = client
            .get(CHANNEL, QUEUE)
            .map(|delivered| delivered.message.body);
        if found.as_deref() != Some(body(number, 100).as_slice()) {
            return Err(format!(
                "message {number} of {confirmed} is lost or altered: {found:?}"
            ));
        }
    }
    Ok(())
}

/// A new data directory's entries are synced before the first confirm: without that the files have no names after a power cut.
pub(crate) fn directories_are_synced(builder: Builder) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let trace = Trace::new(directory.path());
    let mut broker = builder.wrapper(&trace.wrapper("")).start();
    let mut client = open(&broker);
    client.publish(CHANNEL, "", QUEUE, &Message::persistent("first"));
    client.wait_confirm(CHANNEL);
    broker.kill();
    let calls = trace.calls();
    let before = calls.iter().take_while(|call| **call != Call::Confirm);
    match before.filter(|call| **call == Call::DirectorySync).count() {
        0 => Err("no directory was synced before the first confirm".into()),
        _ => Ok(()),
    }
}

/// A broker that fills some small segments and ends cleanly, with a checkpoint; what it did to its files.
///
/// A commit that ends in another segment than it began in is what is looked for. One connection has only some of its messages
/// under way; so there are several, and what comes from them while a sync takes its time is about a segment.
fn changes_of_a_short_life(builder: Builder) -> Vec<Change> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let trace = Trace::new(directory.path());
    let inject = format!("fdatasync:delay_exit={}", SHORT_DELAY.as_micros());
    let mut broker = builder
        .arg("--segment-size=1MiB")
        .wrapper(&trace.wrapper(&inject))
        .start();
    let address = broker.address();
    open(&broker);
    std::thread::scope(|scope| {
        for _ in 0..FILLERS {
            scope.spawn(move || fill(address));
        }
    });
    assert!(broker.terminate().success());
    trace.changes()
}

/// Publishes [`FILLING`] messages at once, and waits for their confirms.
fn fill(address: SocketAddr) {
    let mut client = Client::connect(address);
    client.open_channel(CHANNEL);
    client.confirm_select(CHANNEL);
    for number in 0..FILLING {
        let message = Message::persistent(body(number, 100_000));
        client.push_publish(CHANNEL, "", QUEUE, &message);
    }
    client.flush().expect("the broker reads");
    client.wait_confirms_upto(CHANNEL, u64::try_from(FILLING).unwrap_or(0));
}

/// A segment is written only when the one before it is on the medium.
pub(crate) fn segments_follow_syncs(builder: Builder) -> Result<(), String> {
    let changes = changes_of_a_short_life(builder);
    match check_segments_follow_syncs(&changes)? {
        0 | 1 => Err("fewer than three segments".into()),
        _ => Ok(()),
    }
}

/// A superblock is written only when the checkpoint it names is on the medium, under its name.
pub(crate) fn superblocks_follow_checkpoints(builder: Builder) -> Result<(), String> {
    let changes = changes_of_a_short_life(builder);
    match check_superblocks_follow_checkpoints(&changes)? {
        0 => Err("no superblock was written behind a checkpoint".into()),
        _ => Ok(()),
    }
}

/// One flipped byte of a message on disk is never handed to a consumer: the broker refuses to start, or withholds that message.
pub(crate) fn a_flipped_byte_is_never_delivered(make: impl Fn() -> Builder) -> Result<(), String> {
    const MARK: &[u8] = b"a body that can be found in the log";
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let data_dir = directory.path().join("data");
    let mut broker = make().data_dir(&data_dir).start();
    let mut client = open(&broker);
    client.publish(CHANNEL, "", QUEUE, &Message::persistent("before"));
    client.publish(CHANNEL, "", QUEUE, &Message::persistent(MARK.to_vec()));
    client.publish(CHANNEL, "", QUEUE, &Message::persistent("behind"));
    client.wait_confirms_upto(CHANNEL, 3);
    assert!(broker.terminate().success());
    let flipped = flip_in_log(&data_dir, MARK);
    assert_eq!(flipped, 1, "the body is in the log once");
    let Ok(broker) = make().data_dir(&data_dir).try_start() else {
        // Refused: the damage was noticed.
        return Ok(());
    };
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    while let Some(delivered) = client.get(CHANNEL, QUEUE) {
        let body = &delivered.message.body;
        if !["before".as_bytes(), b"behind"].contains(&body.as_ref()) {
            return Err(format!("delivered {:?}", String::from_utf8_lossy(body)));
        }
    }
    Ok(())
}

/// Flips a bit in the middle of every occurrence of `mark` in the segments; how many.
fn flip_in_log(data_dir: &std::path::Path, mark: &[u8]) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(data_dir.join("log")).expect("the log is a directory") {
        let path = entry.expect("the directory can be read").path();
        let mut bytes = std::fs::read(&path).expect("a segment can be read");
        let found: Vec<usize> = bytes
            .windows(mark.len())
            .enumerate()
            .filter_map(|(at, window)| (window == mark).then_some(at))
            .collect();
        for at in &found {
            bytes[at + mark.len() / 2] ^= 1;
        }
        if !found.is_empty() {
            std::fs::write(&path, bytes).expect("a segment can be written");
        }
        count += found.len();
    }
    count
}
