//! Confirms wait for the disk: shown on the binary, from outside, under strace.
//!
//! Two independent ways: the order of the system calls, and time, with every fdatasync made slow. The only bounds are lower ones, so
//! a busy machine cannot fail them.

mod crash;
mod support;

use crash::proofs;
use support::TestBroker;

#[track_caller]
fn check(outcome: Result<(), String>) {
    if let Err(complaint) = outcome {
        panic!("{complaint}");
    }
}

#[test]
fn every_confirm_follows_a_write_and_a_sync() {
    check(proofs::confirms_follow_syncs(TestBroker::builder()));
}

#[test]
fn with_fsync_interval_confirms_still_follow_the_sync() {
    let builder = TestBroker::builder()
        .arg("--fsync=interval")
        .arg("--fsync-interval-ms=50");
    check(proofs::confirms_follow_syncs(builder));
}

#[test]
fn with_every_sync_delayed_no_confirm_comes_earlier() {
    check(proofs::confirms_take_as_long_as_the_sync(
        TestBroker::builder(),
    ));
}

#[test]
fn with_fsync_interval_and_every_sync_delayed_no_confirm_comes_earlier() {
    let builder = TestBroker::builder().arg("--fsync=interval");
    check(proofs::confirms_take_as_long_as_the_sync(builder));
}

#[test]
fn a_failed_sync_ends_the_broker_and_nothing_is_confirmed_after_it() {
    check(proofs::a_failed_sync_is_the_end(TestBroker::builder));
}

#[test]
fn the_names_of_new_files_are_synced_too() {
    check(proofs::directories_are_synced(TestBroker::builder()));
}

/// Proves I3, I25.
#[test]
fn segments_and_superblocks_follow_what_they_rest_on() {
    check(proofs::segments_follow_syncs(TestBroker::builder()));
    check(proofs::superblocks_follow_checkpoints(TestBroker::builder()));
}

#[test]
fn a_flipped_byte_is_never_delivered() {
    check(proofs::a_flipped_byte_is_never_delivered(
        TestBroker::builder,
    ));
}

/// `--fsync never` promises less; here it shows that the checks above can fail.
#[test]
fn the_checks_notice_confirms_that_do_not_wait() {
    let never = || TestBroker::builder().arg("--fsync=never");
    let complaint = proofs::confirms_follow_syncs(never()).expect_err("no sync, no clean log");
    assert!(
        complaint.contains("before the log was synced"),
        "{complaint}"
    );
    let complaint =
        proofs::confirms_take_as_long_as_the_sync(never()).expect_err("nothing to wait for");
    assert!(
        complaint.contains("before any sync can have ended"),
        "{complaint}"
    );
    let complaint = proofs::a_failed_sync_is_the_end(never).expect_err("no sync fails");
    assert!(
        complaint.contains("confirmed while syncs fail"),
        "{complaint}"
    );
}
