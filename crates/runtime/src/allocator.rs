//! Gives memory back that the allocator holds but nobody uses. Calls of the C library, which have no safe form.

/// Bytes of free memory that a thread may keep at the end of what it has.
#[cfg(target_env = "gnu")]
const KEPT: nix::libc::c_int = 4 << 20;
/// Bytes from which on an allocation is the kernel's, and goes back to it as soon as it is freed.
#[cfg(target_env = "gnu")]
const OWN: nix::libc::c_int = 1 << 20;

/// Has the allocator keep little of what is freed; for when a process begins, before it has a second thread. Left alone it
/// learns from what is freed how much it should keep, up to 64 MiB a thread, which [`trim`] gives back of none but the first:
/// a peer would teach it.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "the C library's own function, which nobody wraps"
)]
pub fn keep_little() {
    use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    // SAFETY: it takes two numbers and changes nothing but what the allocator reads under its own locks.
    unsafe {
        // It refuses only what it does not know.
        mallopt(M_MMAP_THRESHOLD, OWN);
        mallopt(M_TRIM_THRESHOLD, KEPT);
    }
}

/// Other C libraries keep little by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little() {}

/// Has the allocator give free memory back to the kernel. Takes milliseconds, and allocations elsewhere wait for it: only
/// now and then, or for when memory is short.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "the C library's own function, which nobody wraps"
)]
pub fn trim() {
    // SAFETY: it takes a number, holds the allocator's own locks, and may be called from any thread at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Bytes of this process that are in memory.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = statm.split(' ').nth(1).unwrap();
        pages.parse::<usize>().unwrap() * 4096
    }

    /// Runs itself again as a process in which nobody else uses memory meanwhile.
    #[test]
    fn what_a_thread_has_freed_goes_back_whatever_was_freed_before() {
        const CHILD: &str = "TULLE_TEST_ALLOCATOR_CHILD";
        let name = "allocator::tests::what_a_thread_has_freed_goes_back_whatever_was_freed_before";
        if std::env::var_os(CHILD).is_none() {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let ran = child.args(["--exact", name]).env(CHILD, "1").output();
            let ran = ran.unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(ran.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        keep_little();
        // From this the allocator would learn to keep twice as much.
        drop(std::hint::black_box(vec![1_u8; 24 << 20]));
        let thread = std::thread::spawn(|| {
            let mut pieces = Vec::with_capacity(200_000);
            let before = resident();
            // Nothing may be allocated after them that stays.
            pieces.resize_with(200_000, || Box::new([1_u8; 128]));
            std::hint::black_box(&mut pieces).clear();
            trim();
            resident().saturating_sub(before)
        });
        let left = thread.join().unwrap();
        assert!(left < 8 << 20, "{left} of 28 million bytes");
    }
}
