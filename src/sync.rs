//! Mutexes whose poisoning ends the process.
//!
//! A panic while shared state is locked may leave that state half changed. Recovery from the log is
//! tested, a half-dead broker is not: so the process aborts and the next start replays.

use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

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

fn poisoned() -> ! {
    tracing::error!(
        "a thread panicked while it held shared state; aborting, the next start recovers from the log"
    );
    std::process::abort()
}
