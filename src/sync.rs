//! Mutexes whose poisoning ends the process.
//!
//! A panic while shared state is locked may leave that state half changed. Recovery from the log is
//! tested, a half-dead broker is not: so the process aborts and the next start replays.

use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Locks `mutex`; aborts the process when an earlier holder panicked.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|_| poisoned())
}

/// Takes `lock` for reading; aborts the process when an earlier writer panicked.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(|_| poisoned())
}

/// Takes `lock` for writing; aborts the process when an earlier writer panicked.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(|_| poisoned())
}

/// Waits for `condvar`; aborts the process when a holder of its mutex panicked.
pub fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(|_| poisoned())
}

/// As [`wait`], but not longer than `timeout`.
pub fn wait_within<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    wait_until_idle(condvar, guard, timeout).0
}

/// As [`wait_within`]; also true when `timeout` has passed and nobody has notified.
pub fn wait_until_idle<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> (MutexGuard<'a, T>, bool) {
    match condvar.wait_timeout(guard, timeout) {
        Ok((guard, result)) => (guard, result.timed_out()),
        Err(_) => poisoned(),
    }
}

fn poisoned() -> ! {
    tracing::error!(
        "a thread panicked while it held shared state; aborting, the next start recovers from the log"
    );
    std::process::abort()
}
