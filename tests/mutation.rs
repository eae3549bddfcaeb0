//! Builds with a deliberate defect must fail the checks: a check that was never seen to fail proves little.
//!
//! The crate is built once more with the feature `fault-injection`, into a target directory of its own (`target/fault`); the defect
//! is chosen at run time by `STRATAMQ_FAULT`. Every check passes on the same build without a defect, so it is the defect that fails it.

mod crash;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crash::proofs;
use support::{Builder, TestBroker};

/// Builds the crippled broker; its executable.
fn crippled_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fault");
        let output = Command::new(env!("CARGO"))
            .args([
                "build",
                "--locked",
                "--features",
                "fault-injection",
                "--bin",
                "stratamq",
            ])
            .arg("--target-dir")
            .arg(&target)
            // Half the time to build, and nobody looks into it with a debugger.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo can be executed");
        assert!(
            output.status.success(),
            "the build failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        target.join("debug/stratamq")
    })
}

/// The crippled build with a defect, or with none for the empty word.
fn broker(fault: &'static str) -> impl Fn() -> Builder {
    move || {
        TestBroker::builder()
            .binary(crippled_binary())
            .env("STRATAMQ_FAULT", fault)
    }
}

/// The check passes without the defect and complains with it, in these words.
#[track_caller]
fn check(
    fault: &'static str,
    proof: impl Fn(&dyn Fn() -> Builder) -> Result<(), String>,
    complaint: &str,
) {
    if let Err(unexpected) = proof(&broker("")) {
        panic!("without a defect: {unexpected}");
    }
    match proof(&broker(fault)) {
        Ok(()) => panic!("{fault} went unnoticed"),
        Err(found) => assert!(found.contains(complaint), "{fault}: {found}"),
    }
}

#[test]
fn a_build_that_does_not_sync_is_noticed() {
    let syncs = |make: &dyn Fn() -> Builder| proofs::confirms_follow_syncs(make());
    check("skip-sync", syncs, "before the log was synced");
    let delays = |make: &dyn Fn() -> Builder| proofs::confirms_take_as_long_as_the_sync(make());
    check("skip-sync", delays, "before any sync can have ended");
    check(
        "skip-sync",
        |make| proofs::a_failed_sync_is_the_end(make),
        "confirmed while syncs fail",
    );
}

#[test]
fn a_build_that_does_not_sync_directories_is_noticed() {
    let names = |make: &dyn Fn() -> Builder| proofs::directories_are_synced(make());
    check("skip-dir-sync", names, "no directory was synced");
}

#[test]
fn a_build_that_does_not_check_checksums_is_noticed() {
    check(
        "skip-crc",
        |make| proofs::a_flipped_byte_is_never_delivered(make),
        "delivered",
    );
}

#[test]
fn a_build_that_swaps_orders_is_noticed() {
    let segments = |make: &dyn Fn() -> Builder| proofs::segments_follow_syncs(make());
    check("swap-segments", segments, "was synced");
    let superblocks = |make: &dyn Fn() -> Builder| proofs::superblocks_follow_checkpoints(make());
    check(
        "swap-superblock",
        superblocks,
        "the superblock names a checkpoint",
    );
}
